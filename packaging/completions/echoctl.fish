# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_echoctl_global_optspecs
    string join \n h/help V/version
end

function __fish_echoctl_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_echoctl_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_echoctl_using_subcommand
    set -l cmd (__fish_echoctl_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c echoctl -n "__fish_echoctl_needs_command" -s h -l help -d 'Print help'
complete -c echoctl -n "__fish_echoctl_needs_command" -s V -l version -d 'Print version'
complete -c echoctl -n "__fish_echoctl_needs_command" -f -a "send" -d 'Send messages and print the replies'
complete -c echoctl -n "__fish_echoctl_needs_command" -f -a "ping" -d 'Measure round trip times, one message after the other'
complete -c echoctl -n "__fish_echoctl_needs_command" -f -a "bench" -d 'Put load on a server and report its throughput and latencies'
complete -c echoctl -n "__fish_echoctl_needs_command" -f -a "status" -d 'Show the figures of a running echoed'
complete -c echoctl -n "__fish_echoctl_needs_command" -f -a "connections" -d 'List the open connections of a running echoed'
complete -c echoctl -n "__fish_echoctl_needs_command" -f -a "close" -d 'Close a connection of a running echoed'
complete -c echoctl -n "__fish_echoctl_needs_command" -f -a "drain" -d 'Have load balancers send new clients elsewhere (lame duck)'
complete -c echoctl -n "__fish_echoctl_needs_command" -f -a "resume" -d 'Have load balancers send new clients again'
complete -c echoctl -n "__fish_echoctl_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c echoctl -n "__fish_echoctl_using_subcommand send" -l delimiter -d 'The end of messages and replies, 1 to 16 bytes' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand send" -l prefix -d 'The beginning of replies, 0 to 4096 bytes' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand send" -l connect-timeout -d 'How long connecting may take, including the lookup of the name' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand send" -l timeout -d 'How long each reply may take' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand send" -l expect -d 'Expect exactly these bytes as the reply to each message' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand send" -s c -l count -d 'Send this number of messages: the MESSAGEs in turn, repeatedly' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand send" -s i -l interval -d 'Send a message at this interval: the MESSAGEs in turn, until --count or Ctrl-C' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand send" -l no-reply -d 'Expect no replies: for sinks'
complete -c echoctl -n "__fish_echoctl_using_subcommand send" -l raw -d 'Send no delimiter, and print the server\'s output as it arrives'
complete -c echoctl -n "__fish_echoctl_using_subcommand send" -l json -d 'Print a JSON object for each reply'
complete -c echoctl -n "__fish_echoctl_using_subcommand send" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c echoctl -n "__fish_echoctl_using_subcommand ping" -s c -l count -d 'How many messages to send [default: until Ctrl-C]' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand ping" -s i -l interval -d 'The time from one message to the next, at least 1ms' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand ping" -s W -l timeout -d 'How long each reply may take' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand ping" -s s -l size -d 'The size of each message, without the delimiter' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand ping" -l delimiter -d 'The end of messages and replies, 1 to 16 bytes' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand ping" -l prefix -d 'The beginning of replies, 0 to 4096 bytes' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand ping" -l connect-timeout -d 'How long connecting may take, including the lookup of the name' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand ping" -s q -l quiet -d 'Print the summary only'
complete -c echoctl -n "__fish_echoctl_using_subcommand ping" -s D -l timestamps -d 'Print the time of day before each line, in seconds since 1970'
complete -c echoctl -n "__fish_echoctl_using_subcommand ping" -l json -d 'Print a JSON object for each line'
complete -c echoctl -n "__fish_echoctl_using_subcommand ping" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -s C -l connections -d 'The number of connections; with udp: and unixgram: of sources, each with its own socket' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -s d -l depth -d 'How many messages of each connection may be on their way [default: 1; unlimited for packets at a rate]' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -s s -l size -d 'The size of each message, without the delimiter: 0B, 16B, 1KiB' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -s t -l duration -d 'How long to send messages, after the warm-up [default: 10s, unless --count is given]' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -s c -l count -d 'How many messages to send, including those of the warm-up' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -s w -l warm-up -d 'Run for this time before measuring' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -s r -l rate -d 'Send messages at this rate, and measure latencies from when each was due: 500/s' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -s T -l threads -d 'The number of sending threads, at most one for each connection' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -l delimiter -d 'The end of messages and replies, 1 to 16 bytes' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -l prefix -d 'The beginning of replies, 0 to 4096 bytes' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -l connect-timeout -d 'How long connecting may take, including the lookup of the name' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -l timeout -d 'How long each reply may take [default: 5s; packets: 1s]' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -l no-verify -d 'Do not compare the replies, only count their bytes; of packets, compare only prefix, numbers and length'
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -l json -d 'Print one JSON object instead'
complete -c echoctl -n "__fish_echoctl_using_subcommand bench" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c echoctl -n "__fish_echoctl_using_subcommand status" -l socket -d 'The control socket of the daemon' -r -F
complete -c echoctl -n "__fish_echoctl_using_subcommand status" -l json -d 'Print JSON: one object on each line'
complete -c echoctl -n "__fish_echoctl_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c echoctl -n "__fish_echoctl_using_subcommand connections" -l listener -d 'Only the connections of this listener' -r
complete -c echoctl -n "__fish_echoctl_using_subcommand connections" -l socket -d 'The control socket of the daemon' -r -F
complete -c echoctl -n "__fish_echoctl_using_subcommand connections" -l json -d 'Print JSON: one object on each line'
complete -c echoctl -n "__fish_echoctl_using_subcommand connections" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c echoctl -n "__fish_echoctl_using_subcommand close" -l socket -d 'The control socket of the daemon' -r -F
complete -c echoctl -n "__fish_echoctl_using_subcommand close" -l json -d 'Print JSON: one object on each line'
complete -c echoctl -n "__fish_echoctl_using_subcommand close" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c echoctl -n "__fish_echoctl_using_subcommand drain" -l socket -d 'The control socket of the daemon' -r -F
complete -c echoctl -n "__fish_echoctl_using_subcommand drain" -l json -d 'Print JSON: one object on each line'
complete -c echoctl -n "__fish_echoctl_using_subcommand drain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c echoctl -n "__fish_echoctl_using_subcommand resume" -l socket -d 'The control socket of the daemon' -r -F
complete -c echoctl -n "__fish_echoctl_using_subcommand resume" -l json -d 'Print JSON: one object on each line'
complete -c echoctl -n "__fish_echoctl_using_subcommand resume" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c echoctl -n "__fish_echoctl_using_subcommand help; and not __fish_seen_subcommand_from send ping bench status connections close drain resume help" -f -a "send" -d 'Send messages and print the replies'
complete -c echoctl -n "__fish_echoctl_using_subcommand help; and not __fish_seen_subcommand_from send ping bench status connections close drain resume help" -f -a "ping" -d 'Measure round trip times, one message after the other'
complete -c echoctl -n "__fish_echoctl_using_subcommand help; and not __fish_seen_subcommand_from send ping bench status connections close drain resume help" -f -a "bench" -d 'Put load on a server and report its throughput and latencies'
complete -c echoctl -n "__fish_echoctl_using_subcommand help; and not __fish_seen_subcommand_from send ping bench status connections close drain resume help" -f -a "status" -d 'Show the figures of a running echoed'
complete -c echoctl -n "__fish_echoctl_using_subcommand help; and not __fish_seen_subcommand_from send ping bench status connections close drain resume help" -f -a "connections" -d 'List the open connections of a running echoed'
complete -c echoctl -n "__fish_echoctl_using_subcommand help; and not __fish_seen_subcommand_from send ping bench status connections close drain resume help" -f -a "close" -d 'Close a connection of a running echoed'
complete -c echoctl -n "__fish_echoctl_using_subcommand help; and not __fish_seen_subcommand_from send ping bench status connections close drain resume help" -f -a "drain" -d 'Have load balancers send new clients elsewhere (lame duck)'
complete -c echoctl -n "__fish_echoctl_using_subcommand help; and not __fish_seen_subcommand_from send ping bench status connections close drain resume help" -f -a "resume" -d 'Have load balancers send new clients again'
complete -c echoctl -n "__fish_echoctl_using_subcommand help; and not __fish_seen_subcommand_from send ping bench status connections close drain resume help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
