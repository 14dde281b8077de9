"""A typical client in Python, which knows nothing about its server.

    client.py NETWORK ADDRESS WAY

Networks, addresses and ways are those of client.c.
"""

import socket
import sys
import time

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM,
         "unix": socket.SOCK_STREAM, "unixpacket": socket.SOCK_SEQPACKET}

network, address, way, *words = sys.argv[1:]
client = socket.socket(socket.AF_UNIX if network.startswith("unix") else socket.AF_INET, KINDS[network])
client.settimeout(30)
if network.startswith("unix"):
    client.connect(address)
else:
    host, port = address.split(":")
    client.connect((host, int(port)))

if way == "until":
    delimiter, *messages = words
    for message in messages:
        client.sendall((message + delimiter).encode())
        reply = b""
        while not reply.endswith(delimiter.encode()):
            received = client.recv(4096)
            assert received, "the stream ended"
            reply += received
        print(reply.decode(), end="")
elif way == "again":
    count, text = words
    for number in range(int(count)):
        client.sendall(f"{number} {text}".encode())
        print(client.recv(1024).decode(), end="")
        time.sleep(0.1)
else:
    client.sendall(words[0].encode())
    if way == "all":
        client.shutdown(socket.SHUT_WR)
        while received := client.recv(4096):
            print(received.decode(), end="")
client.close()
