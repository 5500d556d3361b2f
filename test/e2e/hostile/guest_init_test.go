//go:build e2e && hostile

package hostile

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// In a guest this program is the image's init. It lets the agent bring the VM
// up, and when somebody has made the file goFile, it kills every process, takes
// the agent's ports and answers as no agent would.
const goFile = "/hostile-now"

func init() {
	if os.Getpid() == 1 && filepath.Base(os.Args[0]) != "firecracker" { // a VMM is the first of its namespace
		hostileInit()
	}
}

func hostileInit() {
	tick := time.NewTicker(50 * time.Millisecond)
	for {
		if _, err := os.Stat(goFile); err == nil {
			break
		}
		<-tick.C
	}
	// Whoever made the file hears of it while the agent is still there. Nothing
	// tells when he has: what could is the agent.
	<-time.After(time.Second)
	_ = unix.Kill(-1, unix.SIGKILL)
	for _, port := range []uint32{1024, 22} {
		go func() {
			for {
				if fd, err := listenGuest(port); err == nil {
					acceptGuest(fd)
				}
				<-tick.C // the agent's socket is not closed yet
			}
		}()
	}
	go callHost()
	for {
		var status unix.WaitStatus
		if _, err := unix.Wait4(-1, &status, 0, nil); err != nil {
			<-tick.C
		}
	}
}

func listenGuest(port uint32) (int, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, unix.Listen(fd, 128)
}

func acceptGuest(fd int) {
	for n := 0; ; n++ {
		c, _, err := unix.Accept(fd)
		if err != nil {
			return
		}
		go answerHost(os.NewFile(uintptr(c), "vsock"), guestAnswers[n%len(guestAnswers)])
	}
}

const guestOK = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

// guestAnswers are given in turn: what comes once, then what comes without end.
// The first is an agent that says nothing.
var guestAnswers = []struct {
	once, endless string
	slowly        bool
}{
	{},
	{endless: "HTTP/1.1 200 OK\r\nX: \x1b[2J" + strings.Repeat("y", 4000)},
	{once: guestOK + "\r\n", endless: strings.Repeat(" ", 1<<16)},
	{once: guestOK + "Content-Length: 100\r\n\r\n{\"phase\":\"\x1b[2J"},
	{once: guestOK + "Transfer-Encoding: chunked\r\n\r\n", endless: "10000\r\n" + strings.Repeat("[", 1<<16) + "\r\n"},
	{once: "HTTP/1.1 200 OK\r\n", endless: "X: y\r\n"},
	{once: guestOK, endless: "X", slowly: true},
	{once: guestOK + "\r\n[", endless: " ", slowly: true},
	{once: "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: banger\r\n\r\n"},
	{once: "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: banger-exec\r\n\r\n", endless: "\xff\xff\xff\xff\x00\x00"},
	{endless: "HTTP/1.1 100 Continue\r\n\r\n"},
	{endless: "HTTP/1.1 307 x\r\nLocation: /v1/health\r\nContent-Length: 0\r\n\r\n"},
	{endless: "\x00\x1b[2J\xff"},
	{once: guestOK + "Content-Length: 7\r\n\r\n\x1b]0;x\x07\""},
	{once: "SSH-2.0-x\r\n", endless: "\x00\x00\x80\x00"},
}

// answerHost reads nothing: whoever asks sits on his question, too.
func answerHost(c *os.File, a struct {
	once, endless string
	slowly        bool
}) {
	defer c.Close()
	_, _ = io.WriteString(c, a.once)
	if a.endless == "" && a.once != "" && strings.Contains(a.once, "Content-Length") {
		return // half way
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := io.WriteString(c, a.endless); err != nil {
			return
		}
		if a.slowly || a.endless == "" {
			<-tick.C
		}
	}
}

// callHost opens connections to the host, where nobody listens, without end.
func callHost() {
	var calls atomic.Int64
	for range 2 {
		go func() {
			for port := uint32(1); ; port++ {
				fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					continue
				}
				_ = unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: port % 2048})
				_ = unix.Close(fd)
				if n := calls.Add(1); n%1000 == 0 {
					fmt.Println("hostile guest: " + strconv.FormatInt(n, 10) + " calls")
				}
			}
		}()
	}
}
