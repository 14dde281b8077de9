/*
 * Bare loops that speak the echo protocol over packets: the reference of `cargo bench` for UDP and for Unix sockets that
 * carry packets.
 *
 *     packets [-1] [-b BATCH] udp:HOST:PORT | unixgram:/PATH | seqpacket:/PATH
 *
 * One packet is one message; its reply is one packet: "server got:" and the message. An empty packet is a message, too.
 * There are no deadlines, no limits, no log and no configuration, and nothing is asked about the sender of a datagram.
 *
 *     C: 61 61 61 61                                     aaaa
 *     S: 73 65 72 76 65 72 20 67 6f 74 3a 61 61 61 61    server got:aaaa
 *
 * How it works:
 *
 * - A message is received behind the prefix, where it is its own reply: nothing is copied.
 * - Datagrams: a thread for each socket blocks in recvmmsg() until one is there, takes those that wait, BATCH at most, and
 *   sends all replies with one sendmmsg(). There is no epoll set, which would cost a call more for each batch. A reply
 *   that cannot be sent is dropped. BATCH is 64; from 16 to 256 it makes no difference.
 * - Connections: an epoll set, edge-triggered. A wake-up costs one recvmmsg() and one sendmmsg(); a short batch has
 *   emptied the socket. While replies cannot be sent, they are kept and the server does not read from the connection.
 * - With -1 there are no batches: recvfrom() and sendto(), one packet at a time; connections are level-triggered, so that
 *   a packet costs one recv().
 *
 * When it is ready, it says so on stderr: "listening on udp:127.0.0.1:40123". Without an address it takes the sockets that
 * a service manager has passed (LISTEN_FDS): each of them has a thread.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PREFIX "server got:"
#define PREFIX_SIZE (sizeof PREFIX - 1)
#define MAX_MESSAGE (64 * 1024)
#define MAX_BATCH 1024
#define MAX_SOCKETS 64
#define EVENTS 512

/* Where a packet is received: the prefix, the message, and a byte that shows that a message is too long. The distance of
 * two slots is an odd number of cache lines, or the beginnings of all would compete for the same lines of the cache. Only
 * what is used is backed by memory. */
#define SLOT_SIZE ((size_t)MAX_MESSAGE + 64)

/* What a packet is received in, and its reply sent from. */
struct batch {
    struct mmsghdr *headers;
    struct iovec *received; /* each behind the prefix of its slot */
    struct iovec *replies;  /* each the whole of its slot */
    struct sockaddr_storage *senders;
};

/* A connection of packets, with the replies that could not be sent yet: each behind its size. */
struct connection {
    int fd;
    char *unsent; /* NULL: none */
    size_t unsent_size;
    size_t unsent_sent;
};

static unsigned batch_size = 64;
static bool single;

static void die(const char *format, ...)
{
    int error = errno;
    va_list arguments;

    va_start(arguments, format);
    fputs("packets: ", stderr);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (error)
        fprintf(stderr, ": %s", strerror(error));
    fputc('\n', stderr);
    exit(1);
}

static void *check_alloc(void *memory)
{
    if (!memory)
        die("no memory");
    return memory;
}

/* Turns the first `count` messages into their replies. */
static void prepare_replies(struct batch *batch, int count)
{
    for (int i = 0; i < count; i++) {
        struct msghdr *header = &batch->headers[i].msg_hdr;

        batch->replies[i].iov_len = PREFIX_SIZE + batch->headers[i].msg_len;
        header->msg_iov = &batch->replies[i];
        /* Without an address the kernel does not send it. */
        if (batch->headers[i].msg_len > MAX_MESSAGE)
            header->msg_namelen = 0;
    }
}

/* Makes the first `count` slots ready for the next messages: what comes in batches of one is not to pay for a large one. */
static void prepare_messages(struct batch *batch, int count)
{
    for (int i = 0; i < count; i++) {
        struct msghdr *header = &batch->headers[i].msg_hdr;

        header->msg_iov = &batch->received[i];
        header->msg_namelen = header->msg_name ? sizeof *batch->senders : 0;
    }
}

/* Makes the slots of a thread. Connections have a sender each, so there `with_senders` is false. */
static struct batch make_batch(bool with_senders)
{
    struct batch batch = {
        .headers = check_alloc(calloc(batch_size, sizeof *batch.headers)),
        .received = check_alloc(calloc(batch_size, sizeof *batch.received)),
        .replies = check_alloc(calloc(batch_size, sizeof *batch.replies)),
        .senders = check_alloc(calloc(batch_size, sizeof *batch.senders)),
    };
    char *slots = mmap(NULL, batch_size * SLOT_SIZE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (slots == MAP_FAILED)
        die("mmap");
    for (unsigned i = 0; i < batch_size; i++) {
        char *slot = slots + i * SLOT_SIZE;

        memcpy(slot, PREFIX, PREFIX_SIZE);
        batch.received[i] = (struct iovec){slot + PREFIX_SIZE, MAX_MESSAGE + 1};
        batch.replies[i] = (struct iovec){slot, 0};
        batch.headers[i].msg_hdr.msg_iovlen = 1;
        if (with_senders)
            batch.headers[i].msg_hdr.msg_name = &batch.senders[i];
    }
    prepare_messages(&batch, batch_size);
    return batch;
}

/* ---- datagrams ---------------------------------------------------------------------------------------- */

/* Sends replies. One that cannot be sent is dropped: to a socket without a name, to one that takes no more. */
static void send_datagrams(int fd, struct mmsghdr *headers, int count)
{
    while (count > 0) {
        int sent = sendmmsg(fd, headers, count, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            sent = 1;
        headers += sent;
        count -= sent;
    }
}

static void serve_batches(int fd)
{
    struct batch batch = make_batch(true);

    for (;;) {
        int count = recvmmsg(fd, batch.headers, batch_size, MSG_WAITFORONE, NULL);

        if (count < 0 && errno != EINTR)
            die("recvmmsg");
        if (count > 0) {
            prepare_replies(&batch, count);
            send_datagrams(fd, batch.headers, count);
            prepare_messages(&batch, count);
        }
    }
}

static void serve_singly(int fd)
{
    char *slot = check_alloc(malloc(SLOT_SIZE));

    memcpy(slot, PREFIX, PREFIX_SIZE);
    for (;;) {
        struct sockaddr_storage sender;
        socklen_t sender_size = sizeof sender;
        ssize_t size = recvfrom(fd, slot + PREFIX_SIZE, MAX_MESSAGE + 1, 0, (struct sockaddr *)&sender, &sender_size);

        if (size < 0 && errno != EINTR)
            die("recvfrom");
        if (size >= 0 && size <= MAX_MESSAGE && sender_size > sizeof(sa_family_t))
            sendto(fd, slot, PREFIX_SIZE + size, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&sender, sender_size);
    }
}

/* ---- connections -------------------------------------------------------------------------------------- */

static void epoll_update(int epoll, int operation, int fd, uint32_t events, void *data)
{
    struct epoll_event event = {.events = events | (single ? 0 : EPOLLET), .data.ptr = data};

    if (epoll_ctl(epoll, operation, fd, &event) < 0)
        die("epoll_ctl");
}

static void close_connection(struct connection *c)
{
    close(c->fd);
    free(c->unsent);
    free(c);
}

/* Keeps the replies that could not be sent until the socket is writable, and stops reading until then. */
static void store_unsent(int epoll, struct connection *c, const struct iovec *replies, int count)
{
    size_t size = 0;
    char *at;

    for (int i = 0; i < count; i++)
        size += sizeof(size_t) + replies[i].iov_len;
    at = c->unsent = check_alloc(malloc(size));
    c->unsent_size = size;
    c->unsent_sent = 0;
    for (int i = 0; i < count; i++) {
        memcpy(at, &replies[i].iov_len, sizeof(size_t));
        memcpy(at + sizeof(size_t), replies[i].iov_base, replies[i].iov_len);
        at += sizeof(size_t) + replies[i].iov_len;
    }
    epoll_update(epoll, EPOLL_CTL_MOD, c->fd, EPOLLOUT, c);
}

/* Sends kept replies. Returns false when the connection is broken. */
static bool send_unsent(int epoll, struct connection *c)
{
    while (c->unsent_sent < c->unsent_size) {
        size_t size;

        memcpy(&size, c->unsent + c->unsent_sent, sizeof size);
        if (send(c->fd, c->unsent + c->unsent_sent + sizeof size, size, MSG_NOSIGNAL) < 0)
            return errno == EAGAIN || errno == EINTR;
        c->unsent_sent += sizeof size + size;
    }
    free(c->unsent);
    c->unsent = NULL;
    /* This polls the socket again: what came meanwhile is reported as a new event. */
    epoll_update(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLRDHUP, c);
    return true;
}

/* Receives up to a batch. Returns how many packets came: 0 when there are none, -1 when the connection is broken. */
static int receive_packets(struct batch *batch, int fd)
{
    ssize_t count;

    if (single) {
        count = recv(fd, batch->received[0].iov_base, batch->received[0].iov_len, 0);
        batch->headers[0].msg_len = count > 0 ? count : 0;
        count = count < 0 ? -1 : 1;
    } else {
        count = recvmmsg(fd, batch->headers, batch_size, 0, NULL);
    }
    return count < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : count;
}

/* Sends replies. Returns how many the socket takes, or -1 when the connection is broken. */
static int send_packets(struct batch *batch, int fd, int count)
{
    int sent;

    if (single)
        sent = send(fd, batch->replies[0].iov_base, batch->replies[0].iov_len, MSG_NOSIGNAL) < 0 ? -1 : 1;
    else
        sent = sendmmsg(fd, batch->headers, count, MSG_NOSIGNAL);
    return sent < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : sent;
}

static void serve_connection(int epoll, struct connection *c, struct batch *batch, uint32_t events)
{
    bool ending = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR), ended = false;
    int received, count, sent;

    if (c->unsent) {
        if (!send_unsent(epoll, c))
            close_connection(c);
        return;
    }
    do {
        received = count = receive_packets(batch, c->fd);
        if (received == 0)
            return;
        for (int i = 0; i < count; i++) {
            /* At its end, a connection yields packets of no size, and nothing else. */
            if (batch->headers[i].msg_len > MAX_MESSAGE || (ending && batch->headers[i].msg_len == 0)) {
                count = i;
                ended = true;
            }
        }
        if (count > 0) {
            prepare_replies(batch, count);
            sent = send_packets(batch, c->fd, count);
            prepare_messages(batch, received);
            if (sent >= 0 && sent < count && !ended) {
                store_unsent(epoll, c, batch->replies + sent, count - sent);
                return;
            }
            ended |= sent < 0;
        }
        if (received < 0 || ended) {
            close_connection(c);
            return;
        }
    } while (ending && !single);
    /* There may be more, but other connections run first: this puts the connection behind them. */
    if (!single && (unsigned)received == batch_size)
        epoll_update(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLRDHUP, c);
}

static void accept_connections(int epoll, int listener)
{
    int fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = check_alloc(calloc(1, sizeof *c));

        c->fd = fd;
        epoll_update(epoll, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP, c);
    }
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        die("accept4");
}

static void serve_connections(int listener)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[EVENTS];
    struct batch batch = make_batch(false);

    if (epoll < 0 || fcntl(listener, F_SETFL, O_NONBLOCK) < 0)
        die("epoll_create1, fcntl");
    epoll_update(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);

        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr)
                serve_connection(epoll, events[i].data.ptr, &batch, events[i].events);
            else
                accept_connections(epoll, listener);
        }
    }
}

/* ---- sockets ------------------------------------------------------------------------------------------ */

static int bind_udp(char *address)
{
    struct sockaddr_in bound = {.sin_family = AF_INET};
    socklen_t size = sizeof bound;
    char *port = strrchr(address, ':');
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        die("socket");
    errno = EINVAL;
    if (!port)
        die("udp:%s has no port", address);
    *port++ = '\0';
    bound.sin_port = htons(atoi(port));
    if (inet_pton(AF_INET, address, &bound.sin_addr) != 1 || bind(fd, (struct sockaddr *)&bound, size) < 0)
        die("%s port %s", address, port);
    getsockname(fd, (struct sockaddr *)&bound, &size);
    fprintf(stderr, "listening on udp:%s:%d\n", address, ntohs(bound.sin_port));
    return fd;
}

static int bind_unix(const char *kind, int type, const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    if (fd < 0)
        die("socket");
    errno = ENAMETOOLONG;
    if (strlen(path) >= sizeof name.sun_path)
        die("%s", path);
    strcpy(name.sun_path, path);
    if (bind(fd, (struct sockaddr *)&name, sizeof name) < 0 || (type == SOCK_SEQPACKET && listen(fd, SOMAXCONN) < 0))
        die("%s", path);
    fprintf(stderr, "listening on %s:%s\n", kind, path);
    return fd;
}

/* Serves a socket, as its type is. */
static void *serve(void *socket)
{
    int fd = (int)(intptr_t)socket, type = 0;
    socklen_t size = sizeof type;

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
        die("descriptor %d", fd);
    if (type == SOCK_SEQPACKET)
        serve_connections(fd);
    else if (single)
        serve_singly(fd);
    else
        serve_batches(fd);
    return NULL;
}

int main(int argc, char **argv)
{
    const char *passed = getenv("LISTEN_FDS");
    struct rlimit files;
    int option, first = 3, count = 1;

    while ((option = getopt(argc, argv, "1b:")) != -1) {
        if (option == '1')
            single = true;
        else
            batch_size = option == 'b' ? (unsigned)atoi(optarg) : 0;
        if (batch_size < 1 || batch_size > MAX_BATCH)
            goto usage;
    }
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }

    if (optind == argc && passed) {
        count = atoi(passed);
        if (count < 1 || count > MAX_SOCKETS)
            die("LISTEN_FDS=%s", passed);
        fprintf(stderr, "listening on %d sockets\n", count);
    } else if (optind + 1 == argc && strncmp(argv[optind], "udp:", 4) == 0) {
        first = bind_udp(argv[optind] + 4);
    } else if (optind + 1 == argc && strncmp(argv[optind], "unixgram:/", 10) == 0) {
        first = bind_unix("unixgram", SOCK_DGRAM, argv[optind] + 9);
    } else if (optind + 1 == argc && strncmp(argv[optind], "seqpacket:/", 11) == 0) {
        first = bind_unix("seqpacket", SOCK_SEQPACKET, argv[optind] + 10);
    } else {
        goto usage;
    }
    for (int i = 1; i < count; i++) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)(first + i)))
            die("pthread_create");
    }
    serve((void *)(intptr_t)first);
    return 0;

usage:
    fputs("usage: packets [-1] [-b BATCH] udp:HOST:PORT | unixgram:/PATH | seqpacket:/PATH\n", stderr);
    return 2;
}
