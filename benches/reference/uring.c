/*
 * The same server as epoll.c, on io_uring: one thread, no library, the kernel's own headers only.
 *
 *     uring tcp:127.0.0.1:PORT | unix:/PATH
 *     uring -c                              check whether this kernel lets us; says why not
 *
 * How it works:
 *
 * - A connection waits with one recv that takes a buffer from a ring only when there is input: an idle
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
 * buffers from sharing the same few sets of the caches. */
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
    int buffer;                /* being sent: a buffer of the ring, by its number; -1: none */
    struct output *output;     /* or one of these */
    char *whole;               /* or a message that came in parts */
    char *partial;             /* the partial message, behind its prefix; NULL: none */
    uint32_t partial_size, partial_capacity;
    struct connection *next;   /* of those that wait for a buffer */
};

static struct {
    int fd;
    unsigned *sq_head, *sq_tail, *cq_head, *cq_tail, sq_mask, cq_mask, tail;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
} ring;

static struct io_uring_buf_ring *buffer_ring;
static char *buffers;
static uint16_t buffer_ring_tail;

/* Few buffers are provided at a time, those last used first: they are still in the caches. The number follows need. */
static uint16_t free_buffers[BUFFERS];
static unsigned free_count, provided, provide_target = 16, most_used, used, waits;
static struct output *outputs;
static struct connection *waiting_for_buffer;
static int listener;

static void die(const char *what)
{
    fprintf(stderr, "uring: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *check_alloc(void *memory)
{
    if (!memory)
        die("memory");
    return memory;
}

static void *map_memory(size_t size)
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

static void provide_buffer(unsigned number)
{
    struct io_uring_buf *entry = &buffer_ring->bufs[buffer_ring_tail & (BUFFERS - 1)];

    entry->addr = (uintptr_t)buffer_at(number);
    entry->len = READ_SIZE;
    entry->bid = number;
    __atomic_store_n(&buffer_ring->tail, ++buffer_ring_tail, __ATOMIC_RELEASE);
}

/* Provides as many buffers as are likely to be needed until the next call. */
static void provide_buffers(void)
{
    if (used > most_used)
        most_used = used;
    used = 0;
    if (++waits % 256 == 0) {
        if (most_used < provide_target / 4 && provide_target > 16)
            provide_target /= 2;
        most_used = 0;
    }
    for (; provided < provide_target && free_count > 0; provided++)
        provide_buffer(free_buffers[--free_count]);
}

/* Submits the queued operations, and waits for this many completions. */
static void submit_and_wait(unsigned wait)
{
    unsigned queued = ring.tail - __atomic_load_n(ring.sq_head, __ATOMIC_ACQUIRE);

    __atomic_store_n(ring.sq_tail, ring.tail, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring.fd, queued, wait, IORING_ENTER_GETEVENTS, NULL, 0) < 0 && errno != EINTR &&
        errno != EBUSY && errno != EAGAIN)
        die("io_uring_enter");
}

/* Reserves room for this many operations; linked ones have to be submitted together. */
static void reserve_sqes(unsigned count)
{
    while (ring.tail + count - __atomic_load_n(ring.sq_head, __ATOMIC_ACQUIRE) > ring.sq_mask + 1)
        submit_and_wait(0);
}

static struct io_uring_sqe *queue(uint8_t operation, int fd, uint64_t data)
{
    struct io_uring_sqe *sqe;

    reserve_sqes(1);
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

    reserve_sqes(2);
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

    buffer_ring = map_memory(BUFFERS * sizeof(struct io_uring_buf));
    buffers = map_memory((size_t)BUFFERS * STRIDE);
    registration.ring_addr = (uintptr_t)buffer_ring;
    if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_PBUF_RING, &registration, 1) < 0)
        return "IORING_REGISTER_PBUF_RING";
    for (unsigned i = 0; i < BUFFERS; i++)
        free_buffers[free_count++] = i;
    return NULL;
}

/* ---- one connection ----------------------------------------------------------------------------------- */

static void close_connection(struct connection *c)
{
    close(c->fd);
    free(c->partial);
    free(c);
}

static struct output *take_output(void)
{
    struct output *output = outputs;

    if (!output)
        return map_memory(sizeof *output + OUTPUT_SIZE);
    outputs = output->next;
    return output;
}

static void release_output(struct connection *c)
{
    if (c->buffer >= 0)
        free_buffers[free_count++] = (uint16_t)c->buffer;
    free(c->whole);
    c->whole = NULL;
    if (c->output) {
        c->output->next = outputs;
        outputs = c->output;
    }
    c->buffer = -1;
    c->output = NULL;
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

/* Answers the complete messages in a buffer and stores the rest. Returns false when a message is too long. */
static bool answer(struct connection *c, unsigned number, size_t size)
{
    char *at = buffer_at(number), *end = at + size, *stop = memchr(at, DELIMITER, size), *out = NULL;

    if (!c->partial && stop == end - 1 && size <= MAX_MESSAGE + 1) {
        c->buffer = (int)number;
        queue_send(c, memcpy(at - PREFIX_SIZE, PREFIX, PREFIX_SIZE), PREFIX_SIZE + size);
        return true;
    }
    if (c->partial && stop == end - 1) {
        if (!append_partial(c, at, size, true))
            return false;
        free_buffers[free_count++] = (uint16_t)number;
        c->whole = c->partial;
        c->partial = NULL;
        queue_send(c, c->whole, c->partial_size);
        return true;
    }
    if (stop) {
        c->output = take_output();
        out = c->output->bytes;
        if (c->partial) {
            if (!append_partial(c, at, stop + 1 - at, true))
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
    if (at < end && !append_partial(c, at, end - at, false))
        return false;
    free_buffers[free_count++] = (uint16_t)number;
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
        provided--;
        used++;
    }
    if (size == -ENOBUFS) {
        /* All connections without a buffer try again in the next loop; there have to be enough buffers then. */
        if (provide_target < BUFFERS && !waiting_for_buffer)
            provide_target *= 2;
        c->next = waiting_for_buffer;
        waiting_for_buffer = c;
    } else if (size <= 0) {
        if (flags & IORING_CQE_F_BUFFER)
            free_buffers[free_count++] = (uint16_t)number;
        close_connection(c);
    } else if (!answer(c, number, size)) {
        free_buffers[free_count++] = (uint16_t)number;
        release_output(c);
        close_connection(c);
    }
}

static void accepted(int fd, unsigned flags)
{
    if (fd >= 0) {
        struct connection *c = check_alloc(calloc(1, sizeof *c));

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
    provide_buffers();
    for (;;) {
        unsigned head, tail;

        submit_and_wait(1);
        head = *ring.cq_head;
        tail = __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE);
        while (head != tail) {
            struct io_uring_cqe cqe = ring.cqes[head++ & ring.cq_mask];
            struct connection *c = (struct connection *)(uintptr_t)(cqe.user_data & ~(uint64_t)3);

            /* At once: the handler may have to submit. */
            __atomic_store_n(ring.cq_head, head, __ATOMIC_RELEASE);
            switch (cqe.user_data & 3) {
            case RECV: received(c, cqe.res, cqe.flags); break;
            case SEND: release_output(c); break; /* a failure cancels the recv, which then ends the connection */
            case ACCEPT: accepted(cqe.res, cqe.flags); break;
            }
        }
        while (waiting_for_buffer) {
            struct connection *c = waiting_for_buffer;

            waiting_for_buffer = c->next;
            queue_recv(c, false);
        }
        provide_buffers();
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
