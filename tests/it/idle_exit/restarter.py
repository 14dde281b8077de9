# Does what systemd does with a service that may end: waits for a client of the sockets, starts the service, waits for its
# end, and so on. For systemd-socket-activate, which does it only once. Each start and each end is a line on stderr.
import os, select, sys
sockets = range(3, 3 + int(os.environ['LISTEN_FDS']))
while True:
    select.select(sockets, [], [])
    child = os.fork()
    if child == 0:
        os.environ['LISTEN_PID'] = str(os.getpid())
        os.execv(sys.argv[1], sys.argv[1:])
    print('started', child, file=sys.stderr, flush=True)
    status = os.waitpid(child, 0)[1]
    print('ended with', status, file=sys.stderr, flush=True)
