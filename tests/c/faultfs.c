/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A file system with one file, `disk`, that fails on demand:
 *
 *     faultfs MOUNTPOINT BACKING CONTROL LOG COMMAND [ARG...]
 *
 * Its data is in BACKING, outside. Before each request CONTROL is read: words like `read=5`, `write=28`, `fsync=5`, `open=30`
 * (the errno that requests of the kind end with) and `slow=5000` (milliseconds that reads and writes take). LOG gets
 * a line when a request is done, before it is answered: `write OFFSET LENGTH`, `fsync`, `read OFFSET LENGTH`. COMMAND runs
 * with the file system mounted, which ends with it.
 *
 * Talks to /dev/fuse itself, as no library for that can be counted on. Needs a mount name space of its own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FILE_NODE 2
#define MAX_WRITE (128 * 1024)
#define BUF_SIZE (MAX_WRITE + 8192)

static int fuse, backing, logfd;
static const char *control;

static void die(const char *what)
{
	fprintf(stderr, "faultfs: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The number behind `NAME=` in the control file; 0: not there. */
static int wanted(const char *name)
{
	char text[256] = " ", key[32];
	int fd = open(control, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text + 1, sizeof(text) - 2);
	const char *at;

	if (fd >= 0)
		close(fd);
	text[1 + (n > 0 ? n : 0)] = 0;
	snprintf(key, sizeof(key), " %s=", name);
	at = strstr(text, key);
	return at ? atoi(at + strlen(key)) : 0;
}

static void note(const char *what, unsigned long long off, unsigned long long len)
{
	char line[96];
	int n = snprintf(line, sizeof(line), "%s %llu %llu\n", what, off, len);

	if (write(logfd, line, n) != n)
		die("log");
}

static void reply(uint64_t unique, int error, const void *data, size_t len)
{
	struct fuse_out_header out = { .len = sizeof(out) + (error ? 0 : len), .error = -error, .unique = unique };
	struct iovec iov[2] = { { &out, sizeof(out) }, { (void *)data, error ? 0 : len } };

	/* ENOENT: the request was interrupted. */
	if (writev(fuse, iov, 2) < 0 && errno != ENOENT && errno != ENODEV)
		die("reply");
}

static struct fuse_attr attr(uint64_t node)
{
	struct fuse_attr a = { .ino = node, .nlink = 1, .blksize = 4096 };
	struct stat st;

	if (node != FILE_NODE) {
		a.mode = S_IFDIR | 0755;
		return a;
	}
	if (fstat(backing, &st))
		die("fstat");
	a.mode = S_IFREG | 0644;
	a.size = st.st_size;
	a.blocks = st.st_blocks;
	return a;
}

static void on_init(struct fuse_in_header *in, struct fuse_init_in *arg)
{
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.max_readahead = 0,
		.flags = arg->flags & (FUSE_ASYNC_READ | FUSE_BIG_WRITES),
		.max_background = 64,
		.congestion_threshold = 64,
		.max_write = MAX_WRITE,
	};

	reply(in->unique, 0, &out, sizeof(out));
}

static void on_read(struct fuse_in_header *in, struct fuse_read_in *arg)
{
	int error = wanted("read");
	char *data = malloc(arg->size);
	ssize_t n = pread(backing, data, arg->size, arg->offset);

	note("read", arg->offset, arg->size);
	reply(in->unique, error ? error : n < 0 ? errno : 0, data, n < 0 ? 0 : n);
	free(data);
}

static void on_write(struct fuse_in_header *in, struct fuse_write_in *arg)
{
	struct fuse_write_out out = { 0 };
	int error = wanted("write");

	if (!error) {
		ssize_t n = pwrite(backing, arg + 1, arg->size, arg->offset);

		error = n < 0 ? errno : 0;
		out.size = n < 0 ? 0 : n;
		note("write", arg->offset, arg->size);
	}
	/* The host's kernel leaves durable writes to the file system. */
	if (!error && arg->flags & O_DSYNC) {
		error = wanted("fsync");
		if (!error)
			note("fsync", 0, 0);
	}
	reply(in->unique, error, &out, sizeof(out));
}

static void on_setattr(struct fuse_in_header *in, struct fuse_setattr_in *arg)
{
	struct fuse_attr_out out = { 0 };
	int error = 0;

	if (arg->valid & FATTR_SIZE && ftruncate(backing, arg->size))
		error = errno;
	out.attr = attr(in->nodeid);
	reply(in->unique, error, &out, sizeof(out));
}

static void on_lookup(struct fuse_in_header *in, const char *name)
{
	struct fuse_entry_out out = { .nodeid = FILE_NODE, .attr = attr(FILE_NODE) };

	reply(in->unique, strcmp(name, "disk") ? ENOENT : 0, &out, sizeof(out));
}

static void handle(struct fuse_in_header *in)
{
	struct fuse_attr_out attr_out = { .attr = attr(in->nodeid) };
	struct fuse_open_out open_out = { .open_flags = FOPEN_DIRECT_IO };
	struct fuse_fallocate_in *range = (void *)(in + 1);
	int error;

	switch (in->opcode) {
	case FUSE_INIT:
		return on_init(in, (void *)(in + 1));
	case FUSE_LOOKUP:
		return on_lookup(in, (void *)(in + 1));
	case FUSE_GETATTR:
		return reply(in->unique, 0, &attr_out, sizeof(attr_out));
	case FUSE_SETATTR:
		return on_setattr(in, (void *)(in + 1));
	case FUSE_OPEN:
		return reply(in->unique, wanted("open"), &open_out, sizeof(open_out));
	case FUSE_OPENDIR:
		return reply(in->unique, 0, &open_out, sizeof(open_out));
	case FUSE_READ:
		return on_read(in, (void *)(in + 1));
	case FUSE_WRITE:
		return on_write(in, (void *)(in + 1));
	case FUSE_FSYNC:
		error = wanted("fsync");
		if (!error)
			note("fsync", 0, 0);
		return reply(in->unique, error, NULL, 0);
	case FUSE_FALLOCATE:
		error = fallocate(backing, range->mode, range->offset, range->length) ? errno : 0;
		return reply(in->unique, error, NULL, 0);
	case FUSE_FLUSH:
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		return reply(in->unique, 0, NULL, 0);
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;
	default:
		return reply(in->unique, ENOSYS, NULL, 0);
	}
}

static void *on_thread(void *buf)
{
	struct fuse_in_header *in = buf;

	if (in->opcode == FUSE_READ || in->opcode == FUSE_WRITE) {
		int ms = wanted("slow");
		struct timespec t = { ms / 1000, ms % 1000 * 1000000L };

		nanosleep(&t, NULL);
	}
	handle(in);
	free(buf);
	return NULL;
}

/* Each request has a thread, so that slow ones do not hold up others. */
static void serve(void)
{
	for (;;) {
		char *buf = malloc(BUF_SIZE);
		ssize_t n = read(fuse, buf, BUF_SIZE);
		pthread_t thread;

		if (n < 0 && errno == ENODEV)
			exit(0);
		if (n < (ssize_t)sizeof(struct fuse_in_header)) {
			if (errno != EINTR && errno != ENOENT && errno != EAGAIN)
				die("read");
			free(buf);
			continue;
		}
		if (pthread_create(&thread, NULL, on_thread, buf))
			die("pthread_create");
		pthread_detach(thread);
	}
}

int main(int argc, char **argv)
{
	char options[96];
	pid_t parent = getpid(), pid;

	if (argc < 6) {
		fprintf(stderr, "usage: faultfs MOUNTPOINT BACKING CONTROL LOG COMMAND [ARG...]\n");
		return 2;
	}
	control = argv[3];
	backing = open(argv[2], O_RDWR | O_CLOEXEC);
	logfd = open(argv[4], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (backing < 0 || logfd < 0 || fuse < 0)
		die("open");
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=%d,group_id=%d", fuse, getuid(), getgid());
	if (mount("faultfs", argv[1], "fuse", MS_NOSUID | MS_NODEV, options))
		die("mount");
	pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			return 1;
		/* The command's output is not ours: who waits for its end must not wait for us. */
		dup2(open("/dev/null", O_RDWR), 1);
		serve();
	}
	execvp(argv[5], argv + 5);
	die(argv[5]);
}
