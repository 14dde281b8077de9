complete -c echoed -l config -d 'Read the settings from this TOML file instead of all files in /usr/lib/echoed, /run/echoed and /etc/echoed' -r -F
complete -c echoed -l listen -d 'Listen on this address: tcp:HOST:PORT, tcp4:HOST:PORT, tcp6:HOST:PORT, udp:HOST:PORT, unix:/PATH, seqpacket:/PATH or unixgram:/PATH, with @NAME instead of a path for an abstract name; HOST:PORT is TCP, /PATH and @NAME are Unix streams. May be repeated. NAME= selects the section [listener.NAME], by default echo. Ignored if systemd passes sockets' -r
complete -c echoed -l listener -d 'Use this section for a connection that systemd has accepted (Accept=yes), or for a socket on stdin (inetd). An unnamed Unix socket on stdin is served only with this option' -r
complete -c echoed -l log-level -d 'Log up to this level: error, warn, info, debug or trace [default: info]' -r
complete -c echoed -l check-config -d 'Check the settings, list the files that were read, and exit'
complete -c echoed -l print-config -d 'Print the settings in effect as TOML, each with its source, and exit'
complete -c echoed -l print-default-config -d 'Print every setting with its default and its description, as TOML, and exit'
complete -c echoed -s h -l help -d 'Print help'
complete -c echoed -s V -l version -d 'Print version'
