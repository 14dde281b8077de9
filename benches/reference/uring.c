/*
 * The same server as epoll.c, on io_uring: one thread, no library, the kernel's own headers only.
 *
 *     uring tcp:127.0.0.1:PORT | unix:/PATH
 *     uring -c                              check whether this kernel lets us; says why not
 *
 * How it works:
 *
 * - A connection waits with one recv that takes a buffer from a ring only when something is there: an idle
 *   connection owns none.
 * - What came is answered by a send with the next recv linked behind it: both go to the kernel with the next
 *   wait, and nothing is read before the replies are gone.
 * - A message that comes alone and whole is answered where it lies: the buffers have room for the prefix in
 *   front. Otherwise the replies are put together in a buffer of their own.
 * - Completions run when the thread waits (DEFER_TASKRUN, Linux 6.1), and a recv does not try before it polls,
 *   because after a reply there is nothing yet.
 *
 * When it listens, it says so on stderr, as epoll.c. It takes the listener of a service manager as well.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define DELIMITER '\t'
#define PREFIX "server got:"
#define PREFIX_SIZE (sizeof PREFIX - 1)
#define MAX_MESSAGE (64 * 1024)
#define REPLY_SIZE (PREFIX_SIZE + MAX_MESSAGE + 1)
#define ENTRIES 4096

/* Small messages are copied as one block of this size. */
#define BLOCK 64

/* Room in front for a prefix and behind for the last block; the odd number of blocks keeps the beginnings of the
 * buffers from sharing the same few places of the caches. */
#define READ_SIZE (128 * 1024)
#define STRIDE (READ_SIZE + 5 * BLOCK)
#define BUFFERS 1024

/* The worst that one recv can cause: nothing but delimiters, after the end of a long message. */
#define OUTPUT_SIZE (READ_SIZE * (PREFIX_SIZE + 1) + REPLY_SIZE + BLOCK)

/* What a completion is of, in the low bits of its user_data; above them is the connection. */
enum { RECV, SEND, ACCEPT };

struct output {
    struct output *next;
    char bytes[];
};

struct connection {
    int fd;
    int buffer;                /* what is being sent: a buffer of the ring, by its number; -1: none */
    struct output *output;     /* or one of these */
    char *whole;               /* or a message that came in parts */
    char *partial;             /* the unfinished message, behind its prefix; NULL: none */
    uint32_t partial_size, partial_capacity;
    struct connection *next;   /* of those that wait for a buffer */
};

static struct {
    int fd;
    unsigned *sq_head, *sq_tail, *cq_head, *cq_tail, sq_mask, cq_mask, tail;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
} ring;

static struct io_uring_buf_ring *offered;
static char *buffers;
static uint16_t offered_tail;

/* Few buffers are offered at a time, those last used first: they are still in the caches. The number follows need. */
static uint16_t spare[BUFFERS];
static unsigned spare_count, stocked, wanted = 16, most_used, used, waits;
static struct output *outputs;
static struct connection *starved;
static int listener;

static void die(const char *what)
{
    fprintf(stderr, "uring: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *checked(void *memory)
{
    if (!memory)
        die("memory");
    return memory;
}

static void *map(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED)
        die("mmap");
    return memory;
}

/* ---- the ring ----------------------------------------------------------------------------------------- */

static char *buffer_at(unsigned number)
{
    return buffers + (size_t)number * STRIDE + BLOCK;
}

static void offer(unsigned number)
{
    struct io_uring_buf *entry = &offered->bufs[offered_tail & (BUFFERS - 1)];

    entry->addr = (uintptr_t)buffer_at(number);
    entry->len = READ_SIZE;
    entry->bid = number;
    __atomic_store_n(&offered->tail, ++offered_tail, __ATOMIC_RELEASE);
}

/* Offers as many buffers as are likely to be needed until the next time. */
static void stock(void)
{
    if (used > most_used)
        most_used = used;
    used = 0;
    if (++waits % 256 == 0) {
        if (most_used < wanted / 4 && wanted > 16)
            wanted /= 2;
        most_used = 0;
    }
    for (; stocked < wanted && spare_count > 0; stocked++)
        offer(spare[--spare_count]);
}

/* Hands over what was queued, and waits for so many completions. */
static void enter(unsigned wait)
{
    unsigned queued = ring.tail - __atomic_load_n(ring.sq_head, __ATOMIC_ACQUIRE);

    __atomic_store_n(ring.sq_tail, ring.tail, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring.fd, queued, wait, IORING_ENTER_GETEVENTS, NULL, 0) < 0 && errno != EINTR &&
        errno != EBUSY && errno != EAGAIN)
        die("io_uring_enter");
}

/* Makes room for so many operations; linked ones have to be handed over together. */
static void make_room(unsigned count)
{
    while (ring.tail + count - __atomic_load_n(ring.sq_head, __ATOMIC_ACQUIRE) > ring.sq_mask + 1)
        enter(0);
}

static struct io_uring_sqe *queue(uint8_t operation, int fd, uint64_t data)
{
    struct io_uring_sqe *sqe;

    make_room(1);
    sqe = &ring.sqes[ring.tail++ & ring.sq_mask];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = operation;
    sqe->fd = fd;
    sqe->user_data = data;
    return sqe;
}

static void queue_accept(void)
{
    struct io_uring_sqe *sqe = queue(IORING_OP_ACCEPT, listener, ACCEPT);

    sqe->ioprio = IORING_ACCEPT_MULTISHOT;
    sqe->accept_flags = SOCK_CLOEXEC;
}

static void queue_recv(struct connection *c, bool poll_first)
{
    struct io_uring_sqe *sqe = queue(IORING_OP_RECV, c->fd, (uintptr_t)c | RECV);

    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->ioprio = poll_first ? IORING_RECVSEND_POLL_FIRST : 0;
}

/* Sends replies, and receives what comes next when they are gone. */
static void queue_send(struct connection *c, const char *bytes, size_t size)
{
    struct io_uring_sqe *sqe;

    make_room(2);
    sqe = queue(IORING_OP_SEND, c->fd, (uintptr_t)c | SEND);
    sqe->addr = (uintptr_t)bytes;
    sqe->len = size;
    /* A short send would break the link. */
    sqe->msg_flags = MSG_NOSIGNAL | MSG_WAITALL;
    sqe->flags = IOSQE_IO_LINK;
    queue_recv(c, true);
}

static const char *set_up(void)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE,
        .cq_entries = 8 * ENTRIES,
    };
    struct io_uring_buf_reg registration = {.ring_entries = BUFFERS};
    size_t sq_size, cq_size;
    unsigned *array;
    char *sq, *cq;

    ring.fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &params);
    if (ring.fd < 0)
        return "io_uring_setup";
    sq_size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    sq = mmap(NULL, sq_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQ_RING);
    cq = mmap(NULL, cq_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_CQ_RING);
    ring.sqes = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || ring.sqes == MAP_FAILED)
        return "mmap of the ring";
    ring.sq_head = (unsigned *)(sq + params.sq_off.head);
    ring.sq_tail = (unsigned *)(sq + params.sq_off.tail);
    ring.sq_mask = params.sq_entries - 1;
    array = (unsigned *)(sq + params.sq_off.array);
    for (unsigned i = 0; i < params.sq_entries; i++)
        array[i] = i;
    ring.cq_head = (unsigned *)(cq + params.cq_off.head);
    ring.cq_tail = (unsigned *)(cq + params.cq_off.tail);
    ring.cq_mask = params.cq_entries - 1;
    ring.cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);

    offered = map(BUFFERS * sizeof(struct io_uring_buf));
    buffers = map((size_t)BUFFERS * STRIDE);
    registration.ring_addr = (uintptr_t)offered;
    if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_PBUF_RING, &registration, 1) < 0)
        return "IORING_REGISTER_PBUF_RING";
    for (unsigned i = 0; i < BUFFERS; i++)
        spare[spare_count++] = i;
    return NULL;
}

/* ---- one connection ----------------------------------------------------------------------------------- */

static void hang_up(struct connection *c)
{
    close(c->fd);
    free(c->partial);
    free(c);
}

static struct output *take_output(void)
{
    struct output *output = outputs;

    if (!output)
        return map(sizeof *output + OUTPUT_SIZE);
    outputs = output->next;
    return output;
}

static void give_back(struct connection *c)
{
    if (c->buffer >= 0)
        spare[spare_count++] = (uint16_t)c->buffer;
    free(c->whole);
    c->whole = NULL;
    if (c->output) {
        c->output->next = outputs;
        outputs = c->output;
    }
    c->buffer = -1;
    c->output = NULL;
}

/* Adds to the unfinished message. Returns false when it is longer than it may be. */
static bool keep(struct connection *c, const char *bytes, size_t size, bool complete)
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
            c->partial = checked(realloc(c->partial, capacity));
        } else {
            c->partial = memcpy(checked(malloc(capacity)), PREFIX, PREFIX_SIZE);
            c->partial_size = PREFIX_SIZE;
        }
    }
    memcpy(c->partial + c->partial_size, bytes, size);
    c->partial_size += size;
    return true;
}

/* Answers what is complete in a buffer and keeps the rest. Returns false when a message is too long. */
static bool answer(struct connection *c, unsigned number, size_t size)
{
    char *at = buffer_at(number), *end = at + size, *stop = memchr(at, DELIMITER, size), *out = NULL;

    if (!c->partial && stop == end - 1 && size <= MAX_MESSAGE + 1) {
        c->buffer = (int)number;
        queue_send(c, memcpy(at - PREFIX_SIZE, PREFIX, PREFIX_SIZE), PREFIX_SIZE + size);
        return true;
    }
    if (c->partial && stop == end - 1) {
        if (!keep(c, at, size, true))
            return false;
        spare[spare_count++] = (uint16_t)number;
        c->whole = c->partial;
        c->partial = NULL;
        queue_send(c, c->whole, c->partial_size);
        return true;
    }
    if (stop) {
        c->output = take_output();
        out = c->output->bytes;
        if (c->partial) {
            if (!keep(c, at, stop + 1 - at, true))
                return false;
            memcpy(out, c->partial, c->partial_size);
            out += c->partial_size;
            free(c->partial);
            c->partial = NULL;
            at = stop + 1;
        }
        while (at < end && (stop = memchr(at, DELIMITER, end - at))) {
            size_t message = stop + 1 - at;

            if (message > MAX_MESSAGE + 1)
                return false;
            memcpy(out, PREFIX, PREFIX_SIZE);
            out += PREFIX_SIZE;
            if (message <= BLOCK)
                memcpy(out, at, BLOCK);
            else
                memcpy(out, at, message);
            out += message;
            at += message;
        }
    }
    if (at < end && !keep(c, at, end - at, false))
        return false;
    spare[spare_count++] = (uint16_t)number;
    if (c->output)
        queue_send(c, c->output->bytes, out - c->output->bytes);
    else
        queue_recv(c, false);
    return true;
}

static void received(struct connection *c, int size, unsigned flags)
{
    unsigned number = flags >> IORING_CQE_BUFFER_SHIFT;

    if (flags & IORING_CQE_F_BUFFER) {
        stocked--;
        used++;
    }
    if (size == -ENOBUFS) {
        /* All that tried in this turn come again; there have to be enough for them then. */
        if (wanted < BUFFERS && !starved)
            wanted *= 2;
        c->next = starved;
        starved = c;
    } else if (size <= 0) {
        if (flags & IORING_CQE_F_BUFFER)
            spare[spare_count++] = (uint16_t)number;
        hang_up(c);
    } else if (!answer(c, number, size)) {
        spare[spare_count++] = (uint16_t)number;
        give_back(c);
        hang_up(c);
    }
}

static void accepted(int fd, unsigned flags)
{
    if (fd >= 0) {
        struct connection *c = checked(calloc(1, sizeof *c));

        c->fd = fd;
        c->buffer = -1;
        queue_recv(c, true);
    }
    if (!(flags & IORING_CQE_F_MORE)) {
        if (fd == -EMFILE || fd == -ENFILE)
            usleep(10000);
        queue_accept();
    }
}

static void run(void)
{
    queue_accept();
    stock();
    for (;;) {
        unsigned head, tail;

        enter(1);
        head = *ring.cq_head;
        tail = __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE);
        while (head != tail) {
            struct io_uring_cqe cqe = ring.cqes[head++ & ring.cq_mask];
            struct connection *c = (struct connection *)(uintptr_t)(cqe.user_data & ~(uint64_t)3);

            /* At once: handling it may have to enter. */
            __atomic_store_n(ring.cq_head, head, __ATOMIC_RELEASE);
            switch (cqe.user_data & 3) {
            case RECV: received(c, cqe.res, cqe.flags); break;
            case SEND: give_back(c); break; /* a failure cancels the recv, which then ends the connection */
            case ACCEPT: accepted(cqe.res, cqe.flags); break;
            }
        }
        while (starved) {
            struct connection *c = starved;

            starved = c->next;
            queue_recv(c, false);
        }
        stock();
    }
}

/* ---- the listener ------------------------------------------------------------------------------------- */

static int listen_on(const char *address)
{
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in inet = {.sin_family = AF_INET};
    socklen_t size = sizeof inet;
    bool tcp = strncmp(address, "tcp:127.0.0.1:", 14) == 0;
    int fd = socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, bound;

    if (fd < 0)
        die("socket");
    if (tcp) {
        inet.sin_port = htons((uint16_t)atoi(address + 14));
        inet.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* inherited by every connection */
        bound = bind(fd, (struct sockaddr *)&inet, sizeof inet);
    } else {
        strncpy(local.sun_path, address + 5, sizeof local.sun_path - 1);
        bound = bind(fd, (struct sockaddr *)&local, sizeof local);
    }
    if (bound < 0 || listen(fd, SOMAXCONN) < 0)
        die(address);
    getsockname(fd, (struct sockaddr *)&inet, &size);
    if (tcp)
        fprintf(stderr, "listening on tcp:127.0.0.1:%u\n", ntohs(inet.sin_port));
    else
        fprintf(stderr, "listening on %s\n", address);
    return fd;
}

int main(int argc, char **argv)
{
    const char *failed;
    struct rlimit files;

    mallopt(M_TRIM_THRESHOLD, 4 << 20);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    failed = set_up();
    if (failed)
        die(failed);
    if (argc == 2 && strcmp(argv[1], "-c") == 0)
        return 0;
    if (argc == 1 && getenv("LISTEN_FDS"))
        listener = 3;
    else if (argc == 2 && (strncmp(argv[1], "tcp:127.0.0.1:", 14) == 0 || strncmp(argv[1], "unix:/", 6) == 0))
        listener = listen_on(argv[1]);
    else
        return fputs("usage: uring tcp:127.0.0.1:PORT | unix:/PATH\n", stderr), 2;
    run();
}
