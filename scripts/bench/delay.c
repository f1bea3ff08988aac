// A link with a round trip: for ssh's ProxyCommand. Connects to HOST and PORT, and holds back every byte for half of the
// round trip in each direction. It delays and nothing else: no loss, no limit of the rate but that of its buffers.
//
//   delay HOST PORT ROUND_TRIP_MS
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

// Enough for 50 ms at 600 MB/s in each direction; pieces are as large as reading gives them.
enum { PIECE = 1 << 16, PIECES = 512 };

struct piece {
    long long due;   // nanoseconds
    size_t length, written;
    char *bytes;
};

struct direction {
    int from, to, ended;
    unsigned head, tail;   // pieces head..tail wait
    struct piece pieces[PIECES];
};

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int dial(const char *host, const char *port) {
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
    int on = 1, fd, error = getaddrinfo(host, port, &hints, &found);
    if (error != 0) { fprintf(stderr, "delay: %s: %s\n", host, gai_strerror(error)); exit(1); }
    fd = socket(found->ai_family, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) != 0) { perror("delay: connect"); exit(1); }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void take(struct direction *way, long long hold) {
    struct piece *piece = &way->pieces[way->tail % PIECES];
    char bytes[PIECE];
    ssize_t count = read(way->from, bytes, sizeof bytes);
    if (count < 0 && errno == EINTR) return;
    if (count <= 0) { way->ended = 1; return; }
    piece->bytes = malloc((size_t)count);
    if (piece->bytes == NULL) exit(1);
    memcpy(piece->bytes, bytes, (size_t)count);
    piece->length = (size_t)count;
    piece->written = 0;
    piece->due = now() + hold;
    way->tail++;
}

static void give(struct direction *way) {
    struct piece *piece = &way->pieces[way->head % PIECES];
    ssize_t count = write(way->to, piece->bytes + piece->written, piece->length - piece->written);
    if (count < 0 && errno == EINTR) return;
    if (count < 0) exit(0);   // the other end is gone: so is the link
    piece->written += (size_t)count;
    if (piece->written == piece->length) { free(piece->bytes); way->head++; }
}

int main(int count, char **words) {
    if (count != 4) { fputs("usage: delay HOST PORT ROUND_TRIP_MS\n", stderr); return 2; }
    long long hold = (long long)(atof(words[3]) * 1e6 / 2);
    int link = dial(words[1], words[2]);
    static struct direction ways[2];
    ways[0].from = 0; ways[0].to = link;
    ways[1].from = link; ways[1].to = 1;
    for (;;) {
        struct pollfd watched[2];
        long long next = -1;
        for (int i = 0; i < 2; i++) {
            struct direction *way = &ways[i];
            while (way->head != way->tail && way->pieces[way->head % PIECES].due <= now()) give(way);
            if (way->head == way->tail && way->ended == 1) {
                if (i == 1) return 0;
                shutdown(link, SHUT_WR);
                way->ended = 2;
            }
            if (way->head != way->tail) {
                long long due = way->pieces[way->head % PIECES].due;
                if (next < 0 || due < next) next = due;
            }
            int room = way->tail - way->head < PIECES;
            watched[i] = (struct pollfd){ .fd = !way->ended && room ? way->from : -1, .events = POLLIN };
        }
        long long left = next < 0 ? 0 : next - now();
        if (left < 0) left = 0;
        struct timespec wait = { left / 1000000000LL, left % 1000000000LL };
        if (ppoll(watched, 2, next < 0 ? NULL : &wait, NULL) < 0 && errno != EINTR) { perror("delay: poll"); return 1; }
        for (int i = 0; i < 2; i++) if (watched[i].revents != 0) take(&ways[i], hold);
    }
}
