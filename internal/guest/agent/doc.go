// Package agent is banger-agent: what makes an untouched image a banger guest.
//
// It is the only program of the initrd and runs as two processes. Pid 1
// (pid1.go) loads the kernel's modules, opens the vsock ports and starts the
// serving process; then it only waits for its one order. The serving process
// (serve.go) takes the identity document, mounts the image's root and moves
// both processes into it, runs commands from there, for the control port
// (exec.go) and for SSH (session.go), and orders pid 1 to become the image's
// init, or to stay as a small init (init.go) where the image has none. The
// serving process outlives all that: its program text is the file of the
// initrd, so it needs nothing of the image.
//
// Whatever can panic or block lives in the serving process, since the kernel
// panics when pid 1 dies.
//
// SSH is x/crypto/ssh without a server framework on top: sessions need
// exit-signal, a PTY whose bytes are left alone, and the streams and processes
// of package stream's commands, which a framework would have to be worked
// around for; what remains of it would be smaller than that. Likewise vsock
// and PTY are a handful of system calls each and have no library.
package agent
