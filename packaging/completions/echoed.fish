complete -c echoed -l config -d 'Read the settings from this TOML file, in place of all files in /usr/lib/echoed, /run/echoed and /etc/echoed' -r -F
complete -c echoed -l listen -d 'Listen here: tcp:HOST:PORT, tcp4:HOST:PORT, tcp6:HOST:PORT, udp:HOST:PORT, unix:/PATH, seqpacket:/PATH or unixgram:/PATH, with @NAME in place of a path for an abstract name; HOST:PORT is TCP, and /PATH and @NAME are Unix streams. May be given several times. NAME= picks the section [listener.NAME], by default echo. Ignored where systemd holds the sockets' -r
complete -c echoed -l listener -d 'The section for a connection that systemd has accepted (Accept=yes), or for a socket on stdin (inetd). A Unix socket without a name on stdin is served only with this option' -r
complete -c echoed -l log-level -d 'How much to log: error, warn, info, debug or trace [default: info]' -r
complete -c echoed -l check-config -d 'Check the settings, say which files were read, and exit'
complete -c echoed -l print-config -d 'Print the settings that hold as TOML, each with where it comes from, and exit'
complete -c echoed -l print-default-config -d 'Print every setting with its default and what it is, as TOML, and exit'
complete -c echoed -s h -l help -d 'Print help'
complete -c echoed -s V -l version -d 'Print version'
