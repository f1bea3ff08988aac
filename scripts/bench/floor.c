// The floor: the least that can be called running tasks on another computer. It promises nothing: no journal, no results,
// no clean-up, no checks. What crewboss adds on top of it is what its promises cost.
//
//   floor agent SLOTS                reads tasks from standard input, one JSON line each, runs /bin/true for each with its
//                                    output captured, SLOTS at once, and answers with one JSON line each
//   floor boss TASKS WINDOW CMD...   starts each CMD with sh, keeps WINDOW tasks on their way to each, until TASKS are done
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SLOTS_MAX = 64, HOSTS_MAX = 64, BUFFER = 1 << 18 };

extern char **environ;

static _Noreturn void fail(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void write_all(int fd, const char *bytes, size_t count) {
    while (count > 0) {
        ssize_t written = write(fd, bytes, count);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) fail("write");
        bytes += written;
        count -= (size_t)written;
    }
}

// A reader of lines: gives each whole line once, and keeps what is not whole yet.
struct lines {
    int fd;
    size_t start, end;
    char buffer[BUFFER];
};

static char *next_line(struct lines *in) {
    char *line = in->buffer + in->start;
    char *newline = memchr(line, '\n', in->end - in->start);
    if (newline == NULL) return NULL;
    *newline = '\0';
    in->start = (size_t)(newline + 1 - in->buffer);
    return line;
}

// Returns 0 at the end of the input.
static int read_more(struct lines *in) {
    memmove(in->buffer, in->buffer + in->start, in->end - in->start);
    in->end -= in->start;
    in->start = 0;
    if (in->end == BUFFER) { errno = EMSGSIZE; fail("line"); }
    ssize_t count = read(in->fd, in->buffer + in->end, BUFFER - in->end);
    if (count < 0 && errno != EINTR) fail("read");
    if (count > 0) in->end += (size_t)count;
    return count != 0;
}

// ---- agent ----------------------------------------------------------------------------------------------------------

struct running {
    pid_t pid;
    int output;
    int task;
    size_t bytes;
};

static void start(struct running *slot, int task) {
    int ends[2];
    char *words[] = { "/bin/true", NULL };
    posix_spawn_file_actions_t actions;
    if (pipe2(ends, O_CLOEXEC) != 0) fail("pipe");
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
    errno = posix_spawn(&slot->pid, words[0], &actions, NULL, words, environ);
    if (errno != 0) fail("spawn");
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    slot->output = ends[0];
    slot->task = task;
    slot->bytes = 0;
}

// Returns whether the task has ended and been reported.
static int follow(struct running *slot) {
    char output[4096], answer[128];
    ssize_t count = read(slot->output, output, sizeof output);
    if (count < 0) fail("output");
    if (count > 0) { slot->bytes += (size_t)count; return 0; }
    int status;
    if (waitpid(slot->pid, &status, 0) < 0) fail("wait");
    close(slot->output);
    int length = snprintf(answer, sizeof answer, "{\"done\":%d,\"status\":%d,\"bytes\":%zu}\n", slot->task, status, slot->bytes);
    write_all(1, answer, (size_t)length);
    return 1;
}

static int agent(int slots) {
    static struct lines in = { .fd = 0 };
    struct running running[SLOTS_MAX];
    int busy = 0, more = 1;
    if (slots < 1 || slots > SLOTS_MAX) return 2;
    for (;;) {
        char *line;
        while (busy < slots && (line = next_line(&in)) != NULL) {
            const char *number = strchr(line, ':');
            start(&running[busy++], number == NULL ? -1 : atoi(number + 1));
        }
        if (!more && busy == 0) return 0;
        struct pollfd watched[SLOTS_MAX + 1];
        for (int i = 0; i < busy; i++) watched[i] = (struct pollfd){ .fd = running[i].output, .events = POLLIN };
        // More tasks are read only when there is a place for one.
        int listening = more && busy < slots;
        watched[busy] = (struct pollfd){ .fd = listening ? 0 : -1, .events = POLLIN };
        int count = busy;
        if (poll(watched, (nfds_t)count + 1, -1) < 0) fail("poll");
        if (watched[count].revents != 0) more = read_more(&in);
        for (int i = count - 1; i >= 0; i--)
            if (watched[i].revents != 0 && follow(&running[i])) running[i] = running[--busy];
    }
}

// ---- boss -----------------------------------------------------------------------------------------------------------

struct host {
    int tasks_out;
    int underway;
    struct lines in;
};

static void connect_host(struct host *host, char *command) {
    int there[2], back[2];
    char *words[] = { "sh", "-c", command, NULL };
    posix_spawn_file_actions_t actions;
    pid_t pid;
    if (pipe2(there, O_CLOEXEC) != 0 || pipe2(back, O_CLOEXEC) != 0) fail("pipe");
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, there[0], 0);
    posix_spawn_file_actions_adddup2(&actions, back[1], 1);
    errno = posix_spawn(&pid, "/bin/sh", &actions, NULL, words, environ);
    if (errno != 0) fail("sh");
    close(there[0]);
    close(back[1]);
    host->tasks_out = there[1];
    host->in.fd = back[0];
}

static int boss(int tasks, int window, int count, char **commands) {
    struct host *hosts = calloc((size_t)count, sizeof *hosts);
    struct pollfd watched[HOSTS_MAX];
    int sent = 0, done = 0;
    if (hosts == NULL || count > HOSTS_MAX || window < 1) return 2;
    for (int i = 0; i < count; i++) connect_host(&hosts[i], commands[i]);
    while (done < tasks) {
        for (int i = 0; i < count; i++) {
            // What a dispatcher has to say about a task, and one write for all that is said now.
            char orders[1 << 16];
            size_t used = 0;
            while (sent < tasks && hosts[i].underway < window && used + 256 < sizeof orders) {
                used += (size_t)snprintf(orders + used, sizeof orders - used,
                    "{\"task\":%d,\"attempt\":1,\"commit\":\"%040d\",\"run\":[\"/bin/true\"]}\n", sent, sent);
                sent++;
                hosts[i].underway++;
            }
            write_all(hosts[i].tasks_out, orders, used);
            watched[i] = (struct pollfd){ .fd = hosts[i].in.fd, .events = POLLIN };
        }
        if (poll(watched, (nfds_t)count, -1) < 0) fail("poll");
        for (int i = 0; i < count; i++) {
            if (watched[i].revents == 0) continue;
            if (!read_more(&hosts[i].in)) { errno = EPIPE; fail(commands[i]); }
            for (char *line; (line = next_line(&hosts[i].in)) != NULL; hosts[i].underway--, done++)
                if (strstr(line, "\"status\":0,") == NULL) { errno = EPROTO; fail(line); }
        }
    }
    for (int i = 0; i < count; i++) close(hosts[i].tasks_out);
    while (wait(NULL) > 0) {}
    return 0;
}

int main(int count, char **words) {
    if (count == 3 && strcmp(words[1], "agent") == 0) return agent(atoi(words[2]));
    if (count >= 5 && strcmp(words[1], "boss") == 0)
        return boss(atoi(words[2]), atoi(words[3]), count - 4, words + 4);
    fputs("usage: floor agent SLOTS | floor boss TASKS WINDOW COMMAND...\n", stderr);
    return 2;
}
