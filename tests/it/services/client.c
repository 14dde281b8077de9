// A typical client in C, which knows nothing about echoed.
//
//	client tcp|udp HOST:PORT WAY | client unix|unixpacket PATH WAY
//
// Its ways:
//
//	until DELIMITER MESSAGE...  for each message: write it and the delimiter, read until the delimiter
//	again COUNT TEXT            write the text after a number, read up to 1,024 bytes, wait; so many times
//	all TEXT                    write, end the stream, read to the end of the other one
//	close TEXT                  write and close
//
// It prints what it reads.
#define _GNU_SOURCE
#include <err.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int dial(const char *network, char *address)
{
	int fd;

	if (strncmp(network, "unix", 4) == 0) {
		struct sockaddr_un to = { .sun_family = AF_UNIX };

		strncpy(to.sun_path, address, sizeof to.sun_path - 1);
		fd = socket(AF_UNIX, strcmp(network, "unix") ? SOCK_SEQPACKET : SOCK_STREAM, 0);
		if (connect(fd, (struct sockaddr *)&to, sizeof to))
			err(1, "%s", address);
	} else {
		struct addrinfo like = { .ai_socktype = strcmp(network, "tcp") ? SOCK_DGRAM : SOCK_STREAM }, *to;
		char *colon = strrchr(address, ':');

		*colon = 0;
		if (getaddrinfo(address, colon + 1, &like, &to))
			errx(1, "%s: no such address", address);
		fd = socket(to->ai_family, to->ai_socktype, 0);
		if (connect(fd, to->ai_addr, to->ai_addrlen))
			err(1, "%s", address);
		freeaddrinfo(to);
	}
	return fd;
}

static void write_all(int fd, const char *text)
{
	size_t len = strlen(text);

	while (len > 0) {
		ssize_t written = write(fd, text, len);

		if (written < 0)
			err(1, "write");
		text += written;
		len -= written;
	}
}

// Reads up to size bytes and prints them; returns how many they were.
static size_t read_some(int fd, char *bytes, size_t size)
{
	ssize_t count = read(fd, bytes, size);

	if (count < 0)
		err(1, "read");
	fwrite(bytes, 1, count, stdout);
	return count;
}

int main(int count, char **words)
{
	char bytes[1024];
	int fd;

	alarm(30);
	if (count < 5)
		errx(2, "which way?");
	fd = dial(words[1], words[2]);
	if (!strcmp(words[3], "until")) {
		for (int i = 5; i < count; i++) {
			write_all(fd, words[i]);
			write_all(fd, words[4]);
			do {
				if (read_some(fd, bytes, 1) == 0)
					errx(1, "the stream ended");
			} while (*bytes != *words[4]);
		}
	} else if (!strcmp(words[3], "again")) {
		for (int i = 0; i < atoi(words[4]); i++) {
			snprintf(bytes, sizeof bytes, "%d %s", i, words[5]);
			write_all(fd, bytes);
			read_some(fd, bytes, sizeof bytes);
			usleep(100000);
		}
	} else {
		write_all(fd, words[4]);
		if (!strcmp(words[3], "all")) {
			shutdown(fd, SHUT_WR);
			while (read_some(fd, bytes, sizeof bytes) > 0)
				;
		}
	}
	close(fd);
	return 0;
}
