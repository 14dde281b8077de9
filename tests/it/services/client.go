// A typical client in Go, which knows nothing about its server.
//
//	client NETWORK ADDRESS WAY
//
// Networks and addresses are those of net.Dial, ways those of client.c.
package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"time"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	conn, err := net.Dial(os.Args[1], os.Args[2])
	check(err)
	defer conn.Close()
	check(conn.SetDeadline(time.Now().Add(30 * time.Second)))
	way, words := os.Args[3], os.Args[4:]
	switch way {
	case "until":
		delimiter, replies := words[0], bufio.NewReader(conn)
		for _, message := range words[1:] {
			_, err := fmt.Fprint(conn, message, delimiter)
			check(err)
			reply, err := replies.ReadString(delimiter[0])
			check(err)
			fmt.Print(reply)
		}
	case "again":
		count, err := strconv.Atoi(words[0])
		check(err)
		room := make([]byte, 1024)
		for i := 0; i < count; i++ {
			_, err := fmt.Fprintf(conn, "%d %s", i, words[1])
			check(err)
			n, err := conn.Read(room)
			check(err)
			fmt.Print(string(room[:n]))
			time.Sleep(100 * time.Millisecond)
		}
	case "all", "close":
		_, err := fmt.Fprint(conn, words[0])
		check(err)
		if way == "all" {
			check(conn.(interface{ CloseWrite() error }).CloseWrite())
			_, err = io.Copy(os.Stdout, conn)
			check(err)
		}
	}
}
