// The protocol as one writes it in Go: the standard library, a goroutine for each connection, a buffered reader and
// a buffered writer that is flushed when there is nothing more to read.
//
//	echo tcp:HOST:PORT | unix:/PATH
//
// Without an address it takes the listener of a service manager (LISTEN_FDS).
package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
)

const maxMessage = 64 * 1024

var prefix = []byte("server got:")

func serve(c net.Conn) {
	defer c.Close()
	in, out := bufio.NewReader(c), bufio.NewWriter(c)
	for {
		part, err := in.ReadSlice('\t')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
		whole := err == nil
		if whole {
			// The common case: all of it is in the buffer.
			out.Write(prefix)
			out.Write(part)
		} else {
			// Longer than the buffer: the message is put together before it is answered.
			long := append([]byte(nil), part...)
			for !whole {
				part, err = in.ReadSlice('\t')
				if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
					return
				}
				whole = err == nil
				long = append(long, part...)
				if len(long) > maxMessage+1 {
					return
				}
			}
			out.Write(prefix)
			out.Write(long)
		}
		if in.Buffered() == 0 && out.Flush() != nil {
			return
		}
	}
}

func listen() (net.Listener, error) {
	if len(os.Args) < 2 && os.Getenv("LISTEN_FDS") != "" {
		return net.FileListener(os.NewFile(3, "listener"))
	}
	if len(os.Args) < 2 {
		return nil, errors.New("usage: echo tcp:HOST:PORT | unix:/PATH")
	}
	network, address, _ := strings.Cut(os.Args[1], ":")
	return net.Listen(network, address)
}

func main() {
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) == nil {
		files.Cur = files.Max
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files)
	}
	listener, err := listen()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	fmt.Fprintf(os.Stderr, "listening on %s:%s\n", listener.Addr().Network(), listener.Addr())
	for {
		c, err := listener.Accept()
		if err != nil {
			continue
		}
		go serve(c)
	}
}
