/*
 * A bare epoll loop that speaks the delimited echo protocol: the reference of `cargo bench`.
 *
 *     epoll [-l] [-t THREADS] tcp:HOST:PORT | unix:/PATH
 *
 * A message is any bytes up to a TAB; its reply is "server got:", the message and the TAB. A message of more
 * than 64 KiB ends the connection. There are no deadlines, no limits, no log and no configuration: this is
 * what the protocol costs when nothing but the protocol is done, and done well.
 *
 *     C: 61 61 61 61 09                                     aaaa<TAB>
 *     S: 73 65 72 76 65 72 20 67 6f 74 3a 61 61 61 61 09    server got:aaaa<TAB>
 *
 * How it works:
 *
 * - Every thread has an epoll set of its own. Thread 0 also has the listener in its set and assigns the
 *   connections to the threads in rotation; afterwards a connection belongs to one thread, and no lock is needed.
 * - Edge-triggered: a level-triggered descriptor is polled once more, in vain, after every message. A wake-up
 *   costs one recv() into the thread's scratch and one send(). With -l it is level-triggered: cheaper where there is
 *   always another connection that is ready, so that the second poll costs no wait of its own.
 * - A message that comes alone and whole is answered where it lies: the scratch has room for the prefix in
 *   front. Otherwise the replies are put together in a second scratch and go out at once.
 * - A connection owns memory only for a partial message (stored behind its prefix, so that it becomes its reply
 *   when it is complete) and for unsent replies. While it has unsent replies, the server does not read from it.
 *
 * When it listens, it says so on stderr: "listening on tcp:127.0.0.1:40123". SIGTERM and SIGINT end it.
 * Without an address it takes the listener that a service manager has passed as descriptor 3 (LISTEN_FDS).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DELIMITER '\t'
#define PREFIX "server got:"
#define PREFIX_SIZE (sizeof PREFIX - 1)
#define MAX_MESSAGE (64 * 1024)
#define MAX_THREADS 64
#define EVENTS 512

/* Small messages are copied as one block of this size, whatever their length: a few vector moves. */
#define BLOCK 64

/* What one recv() may bring, with room in front for a prefix and behind for the block that the last copy
 * reads over. */
#define READ_SIZE (256 * 1024)
#define INPUT_SIZE (BLOCK + READ_SIZE + BLOCK)

/* The worst that one recv() can cause: nothing but delimiters, after the end of a long message. Only what is
 * used is ever backed by memory. */
#define REPLY_SIZE (PREFIX_SIZE + MAX_MESSAGE + 1)
#define OUTPUT_SIZE (READ_SIZE * (PREFIX_SIZE + 1) + REPLY_SIZE + BLOCK)

#define READING (EPOLLIN | EPOLLRDHUP | EPOLLET)
#define WRITING (EPOLLOUT | EPOLLET)

struct connection {
    int fd;
    uint32_t partial_size;     /* the partial message, behind its prefix; NULL: none */
    uint32_t partial_capacity;
    uint32_t unsent_size;      /* replies that could not be sent yet; NULL: none */
    uint32_t unsent_sent;
    char *partial;
    char *unsent;
};

struct worker {
    int epoll;
    char *input;  /* where recv() writes: BLOCK bytes into the scratch */
    char *output;
    pthread_t thread;
};

static struct worker workers[MAX_THREADS];
static unsigned worker_count = 1;
static int listener;
static bool level_triggered;

/* Addresses that epoll_event.data has instead of a connection. */
static char listener_event, signal_event;

static void die(const char *format, ...)
{
    int error = errno;
    va_list arguments;

    va_start(arguments, format);
    fputs("epoll: ", stderr);
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

static void epoll_update(int epoll, int operation, int fd, uint32_t events, void *data)
{
    struct epoll_event event = {.events = level_triggered ? events & ~EPOLLET : events, .data.ptr = data};

    if (epoll_ctl(epoll, operation, fd, &event) < 0)
        die("epoll_ctl");
}

/* ---- one connection ----------------------------------------------------------------------------------- */

static void close_connection(struct connection *c)
{
    close(c->fd);
    free(c->partial);
    free(c->unsent);
    free(c);
}

/* Sends what it can. Returns the number of bytes taken, or -1 when the connection is broken. */
static ssize_t try_send(int fd, const char *bytes, size_t size)
{
    ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);

    return sent < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : sent;
}

/* Stores `bytes` (malloc()ed; the connection owns them from now on) until the socket is writable, and stops
 * reading until then. */
static void store_unsent(struct worker *w, struct connection *c, char *bytes, size_t size, size_t sent)
{
    c->unsent = bytes;
    c->unsent_size = size;
    c->unsent_sent = sent;
    epoll_update(w->epoll, EPOLL_CTL_MOD, c->fd, WRITING, c);
}

/* Sends replies from a scratch and copies what the socket does not take. Returns false when the connection is
 * broken. */
static bool reply(struct worker *w, struct connection *c, const char *bytes, size_t size)
{
    ssize_t sent = try_send(c->fd, bytes, size);

    if ((size_t)sent == size)
        return true;
    if (sent < 0)
        return false;
    store_unsent(w, c, memcpy(check_alloc(malloc(size - sent)), bytes + sent, size - sent), size - sent, 0);
    return true;
}

/* Sends unsent replies when the socket is writable again. Returns false when the connection is broken. */
static bool send_unsent(struct worker *w, struct connection *c)
{
    ssize_t sent = try_send(c->fd, c->unsent + c->unsent_sent, c->unsent_size - c->unsent_sent);

    if (sent < 0)
        return false;
    c->unsent_sent += sent;
    if (c->unsent_sent == c->unsent_size) {
        free(c->unsent);
        c->unsent = NULL;
        /* This polls the socket again: input that came meanwhile is reported as a new event. */
        epoll_update(w->epoll, EPOLL_CTL_MOD, c->fd, READING, c);
    }
    return true;
}

/* Appends to the partial message. Returns false when it exceeds the limit. */
static bool append_partial(struct connection *c, const char *bytes, size_t size, bool complete)
{
    size_t needed = c->partial ? c->partial_size + size : PREFIX_SIZE + size;

    if (needed - complete > PREFIX_SIZE + MAX_MESSAGE)
        return false;
    if (!c->partial || needed > c->partial_capacity) {
        size_t capacity = BLOCK;

        while (capacity < needed)
            capacity *= 2;
        if (capacity > REPLY_SIZE)
            capacity = REPLY_SIZE;
        c->partial_capacity = capacity;
        if (c->partial) {
            c->partial = check_alloc(realloc(c->partial, capacity));
        } else {
            c->partial = memcpy(check_alloc(malloc(capacity)), PREFIX, PREFIX_SIZE);
            c->partial_size = PREFIX_SIZE;
        }
    }
    memcpy(c->partial + c->partial_size, bytes, size);
    c->partial_size += size;
    return true;
}

/* Answers the complete messages in the `size` bytes of input and stores the rest. Returns false when the
 * connection is to end: it is broken, or a message is too long (replies to complete messages before it are sent
 * as far as the socket takes them). */
static bool answer(struct worker *w, struct connection *c, size_t size)
{
    char *at = w->input, *end = at + size, *out = w->output, *stop;

    stop = memchr(at, DELIMITER, size);
    if (c->partial) {
        size_t part = (stop ? stop + 1 : end) - at;

        if (!append_partial(c, at, part, stop))
            return false;
        if (!stop)
            return true;
        at += part;
        if (at == end) {
            char *whole = c->partial;
            ssize_t sent = try_send(c->fd, whole, c->partial_size);

            c->partial = NULL;
            if (sent >= 0 && (size_t)sent < c->partial_size)
                store_unsent(w, c, whole, c->partial_size, sent);
            else
                free(whole);
            return sent >= 0;
        }
        memcpy(out, c->partial, c->partial_size);
        out += c->partial_size;
        free(c->partial);
        c->partial = NULL;
        stop = memchr(at, DELIMITER, end - at);
    } else if (stop == end - 1 && size <= MAX_MESSAGE + 1) {
        return reply(w, c, memcpy(at - PREFIX_SIZE, PREFIX, PREFIX_SIZE), PREFIX_SIZE + size);
    }

    while (stop) {
        size_t message = stop + 1 - at;

        if (message > MAX_MESSAGE + 1)
            break;
        memcpy(out, PREFIX, PREFIX_SIZE);
        out += PREFIX_SIZE;
        if (message <= BLOCK)
            memcpy(out, at, BLOCK);
        else
            memcpy(out, at, message);
        out += message;
        at += message;
        stop = at < end ? memchr(at, DELIMITER, end - at) : NULL;
    }
    if (out > w->output && !reply(w, c, w->output, out - w->output))
        return false;
    return at == end || (!stop && append_partial(c, at, end - at, false));
}

static void serve(struct worker *w, struct connection *c, uint32_t events)
{
    if (c->unsent) {
        if (!send_unsent(w, c))
            close_connection(c);
        return;
    }
    for (;;) {
        ssize_t size = recv(c->fd, w->input, READ_SIZE, 0);

        if (size <= 0) {
            if (size == 0 || (errno != EAGAIN && errno != EINTR))
                close_connection(c);
            return;
        }
        if (!answer(w, c, size)) {
            close_connection(c);
            return;
        }
        if (c->unsent)
            return;
        if (size == READ_SIZE) {
            /* There may be more, but other connections run first: this puts the connection behind them. */
            epoll_update(w->epoll, EPOLL_CTL_MOD, c->fd, READING, c);
            return;
        }
        /* A short read has emptied the socket, and what comes later is a new event; only the end of the
         * stream, if it was part of this event, is not announced again. */
        if (!(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
            return;
    }
}

/* ---- threads ------------------------------------------------------------------------------------------ */

/* Accepts all connections in the backlog. Returns false when there is no descriptor or memory left: try later. */
static bool accept_connections(void)
{
    static unsigned next_worker;

    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd >= 0) {
            struct connection *c = check_alloc(calloc(1, sizeof *c));

            c->fd = fd;
            epoll_update(workers[next_worker++ % worker_count].epoll, EPOLL_CTL_ADD, fd, READING, c);
        } else if (errno == EAGAIN) {
            return true;
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            return false;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            die("accept4");
        }
    }
}

static void *run(void *worker)
{
    struct worker *w = worker;
    struct epoll_event events[EVENTS];
    char *scratch = mmap(NULL, INPUT_SIZE + OUTPUT_SIZE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    bool accept_paused = false;

    if (scratch == MAP_FAILED)
        die("mmap");
    w->input = scratch + BLOCK;
    w->output = scratch + INPUT_SIZE;
    for (;;) {
        int count = epoll_wait(w->epoll, events, EVENTS, accept_paused ? 100 : -1);

        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        if (accept_paused)
            accept_paused = !accept_connections();
        for (int i = 0; i < count; i++) {
            void *data = events[i].data.ptr;

            if (data == &signal_event)
                return NULL;
            if (data == &listener_event)
                accept_paused = !accept_connections();
            else
                serve(w, data, events[i].events);
        }
    }
}

/* ---- the listener ------------------------------------------------------------------------------------- */

static int listen_tcp(char *address)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *info;
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    char host[NI_MAXHOST], service[NI_MAXSERV], *port = strrchr(address, ':');
    int fd, failure, on = 1;

    errno = 0;
    if (!port)
        die("tcp:%s has no port", address);
    *port++ = '\0';
    if (*address == '[' && port[-2] == ']') {
        address++;
        port[-2] = '\0';
    }
    failure = getaddrinfo(address, port, &hints, &info);
    if (failure)
        die("%s port %s: %s", address, port, gai_strerror(failure));
    fd = socket(info->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    /* Inherited by every connection. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, SOMAXCONN) < 0)
        die("%s port %s", address, port);
    freeaddrinfo(info);
    getsockname(fd, (struct sockaddr *)&bound, &size);
    getnameinfo((struct sockaddr *)&bound, size, host, sizeof host, service, sizeof service,
                NI_NUMERICHOST | NI_NUMERICSERV);
    fprintf(stderr, strchr(host, ':') ? "listening on tcp:[%s]:%s\n" : "listening on tcp:%s:%s\n", host,
            service);
    return fd;
}

static int listen_unix(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        die("socket");
    errno = ENAMETOOLONG;
    if (strlen(path) >= sizeof name.sun_path)
        die("%s", path);
    strcpy(name.sun_path, path);
    if (bind(fd, (struct sockaddr *)&name, sizeof name) < 0 || listen(fd, SOMAXCONN) < 0)
        die("%s", path);
    fprintf(stderr, "listening on unix:%s\n", path);
    return fd;
}

static int inherited(void)
{
    int fd = 3, on = 1;

    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        die("descriptor 3");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* fails on a Unix socket, which needs none */
    return fd;
}

int main(int argc, char **argv)
{
    const char *path = NULL;
    struct rlimit files;
    sigset_t signals;
    int option;

    while ((option = getopt(argc, argv, "lt:")) != -1) {
        if (option == 'l') {
            level_triggered = true;
            continue;
        }
        worker_count = option == 't' ? (unsigned)atoi(optarg) : 0;
        if (worker_count < 1 || worker_count > MAX_THREADS)
            goto usage;
    }

    /* Memory freed at the end of the heap is kept for the next message, not given back to the kernel. */
    mallopt(M_TRIM_THRESHOLD, 4 << 20);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    for (unsigned i = 0; i < worker_count; i++) {
        workers[i].epoll = epoll_create1(EPOLL_CLOEXEC);
        if (workers[i].epoll < 0)
            die("epoll_create1");
    }
    epoll_update(workers[0].epoll, EPOLL_CTL_ADD, signalfd(-1, &signals, SFD_CLOEXEC), EPOLLIN, &signal_event);

    if (optind == argc && getenv("LISTEN_FDS"))
        listener = inherited();
    else if (optind + 1 == argc && strncmp(argv[optind], "tcp:", 4) == 0)
        listener = listen_tcp(argv[optind] + 4);
    else if (optind + 1 == argc && strncmp(argv[optind], "unix:/", 6) == 0)
        listener = listen_unix(path = argv[optind] + 5);
    else
        goto usage;

    /* Edge-triggered as well: it is emptied on every event, and when descriptors run out it does not spin. */
    epoll_update(workers[0].epoll, EPOLL_CTL_ADD, listener, EPOLLIN | EPOLLET, &listener_event);
    for (unsigned i = 1; i < worker_count; i++)
        if (pthread_create(&workers[i].thread, NULL, run, &workers[i]))
            die("pthread_create");
    run(&workers[0]);
    if (path)
        unlink(path);
    return 0;

usage:
    fputs("usage: epoll [-l] [-t THREADS] tcp:HOST:PORT | unix:/PATH\n", stderr);
    return 2;
}
