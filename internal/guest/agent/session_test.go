package agent

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

func newSession(t *testing.T, c *ssh.Client) *ssh.Session {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func exitCode(err error) int {
	if e, ok := errors.AsType[*ssh.ExitError](err); ok {
		return e.ExitStatus()
	}
	if err != nil {
		return -1
	}
	return 0
}

func TestExecAsOpenSSHDoes(t *testing.T) {
	c := serveSSH(t).login(t)
	ses := newSession(t, c)
	for k, v := range map[string]string{"FROM_CLIENT": "2", "BOTH": "client"} {
		if err := ses.Setenv(k, v); err != nil {
			t.Fatal(err)
		}
	}
	out, err := ses.Output(`echo $FROM_IMAGE $FROM_CLIENT $BOTH $USER "$LANG" ${TERM-none}; exit 3`)
	if got, want := string(out), "1 2 client root C.UTF-8 none\n"; got != want || exitCode(err) != 3 {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestShell(t *testing.T) {
	c := serveSSH(t).login(t)
	ses := newSession(t, c)
	ses.Stdin = strings.NewReader("echo $0\nexit 4\n")
	var out bytes.Buffer
	ses.Stdout = &out
	if err := ses.Shell(); err != nil {
		t.Fatal(err)
	}
	if err := ses.Wait(); exitCode(err) != 4 || out.String() != "-sh\n" {
		t.Errorf("got %q, %v", &out, err)
	}
}

func TestBadRequests(t *testing.T) {
	c := serveSSH(t).login(t)
	ses := newSession(t, c)
	for _, kv := range [][2]string{{"A=B", "x"}, {"", "x"}, {"A B", "x"}, {"A", "\x00"}} {
		if ses.Setenv(kv[0], kv[1]) == nil {
			t.Errorf("variable %q=%q is accepted", kv[0], kv[1])
		}
	}
	if err := ses.RequestSubsystem("netconf"); err == nil {
		t.Error("an unknown subsystem is accepted")
	}
}

func TestUnknownUser(t *testing.T) {
	s := serveSSH(t)
	key := newSigner(t)
	cert := certify(t, s.authority, key.PublicKey(), ssh.UserCert, "root", nil)
	c, err := s.dial(t, "nobody-here", withCert(t, cert, key))
	if err != nil {
		t.Fatal(err)
	}
	out, err := newSession(t, c).CombinedOutput("true")
	if exitCode(err) != 126 || !strings.Contains(string(out), `no user "nobody-here"`) {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestSignals(t *testing.T) {
	c := serveSSH(t).login(t)
	for _, sig := range []ssh.Signal{ssh.SIGINT, ssh.SIGTERM, ssh.SIGKILL, ssh.SIGUSR1} {
		ses := newSession(t, c)
		started(t, ses, "echo ready; exec sleep 60")
		if err := ses.Signal(sig); err != nil {
			t.Fatal(err)
		}
		err := ses.Wait()
		if e, ok := errors.AsType[*ssh.ExitError](err); !ok || e.Signal() != string(sig) {
			t.Errorf("%s: the command ended with %v", sig, err)
		}
	}
}

// started starts a session's command and returns when it has said "ready".
func started(t *testing.T, ses *ssh.Session, line string) {
	t.Helper()
	out, err := ses.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ses.Start(line); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(out, buf); err != nil || !strings.HasPrefix(string(buf), "ready") {
		t.Fatalf("the command said %q, %v", buf, err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
}

func TestBinaryRoundTrip(t *testing.T) {
	c := serveSSH(t).login(t)
	data := make([]byte, 10<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	ses := newSession(t, c)
	ses.Stdin = bytes.NewReader(data)
	out, err := ses.Output("cat")
	if err != nil || !bytes.Equal(out, data) {
		t.Errorf("%d bytes came back, %v", len(out), err)
	}
}

func TestInputNobodyReads(t *testing.T) {
	c := serveSSH(t).login(t)
	for _, script := range []string{"exit 5", "exec <&-; echo done; exit 5"} {
		ses := newSession(t, c)
		ses.Stdin = bytes.NewReader(make([]byte, 8<<20)) // more than the window
		if err := ses.Run(script); exitCode(err) != 5 {
			t.Errorf("%s: %v", script, err)
		}
	}
}

// hupMark is a script that makes the file mark when it is hung up on.
func hupMark(mark string) string {
	return "trap 'echo hup >" + mark + "; exit' HUP; echo ready; while :; do sleep 0.02; done"
}

func TestLostClientHangsUp(t *testing.T) {
	// A command would inherit from nohup that the signal is ignored; not one that is heard.
	heard := make(chan os.Signal, 1)
	signal.Notify(heard, syscall.SIGHUP)
	defer signal.Stop(heard)
	s := serveSSH(t)
	for name, pty := range map[string]bool{"pipes": false, "terminal": true} {
		t.Run(name, func(t *testing.T) {
			c := s.login(t)
			mark := t.TempDir() + "/mark"
			ses := newSession(t, c)
			if pty {
				if err := ses.RequestPty("dumb", 24, 80, nil); err != nil {
					t.Fatal(err)
				}
			}
			started(t, ses, hupMark(mark))
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if err := waitForFile(mark, 10*time.Second); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTerminal(t *testing.T) {
	c := serveSSH(t).login(t)
	ses := newSession(t, c)
	if err := ses.RequestPty("xterm", 30, 100, ssh.TerminalModes{ssh.ECHO: 0, ssh.VERASE: 8}); err != nil {
		t.Fatal(err)
	}
	in, err := ses.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	ses.Stdout = &out
	if err := ses.Start(`test -t 0 && test -t 2 && echo $TERM; stty size; stty -a | grep -o -e '-echo\b' -e 'erase = ^H'; read x; stty size; cat; exit 9`); err != nil {
		t.Fatal(err)
	}
	if ok, err := ses.SendRequest("window-change", true, ssh.Marshal(windowChange{Cols: 120, Rows: 40})); err != nil || !ok {
		t.Fatal(ok, err)
	}
	if _, err := io.WriteString(in, "go\nabc\n"); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil { // ends cat
		t.Fatal(err)
	}
	err = ses.Wait()
	got := strings.ReplaceAll(out.String(), "\r\n", "|")
	// The first size is that of before or after the change.
	if !strings.HasPrefix(got, "xterm|") || !strings.HasSuffix(got, "erase = ^H|-echo|40 120|abc|") || exitCode(err) != 9 {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestTerminalCtrlC(t *testing.T) {
	c := serveSSH(t).login(t)
	ses := newSession(t, c)
	if err := ses.RequestPty("dumb", 24, 80, nil); err != nil {
		t.Fatal(err)
	}
	in, err := ses.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := ses.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ses.Start("echo ready; exec sleep 60"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\r\n"))); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	if _, err := in.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	if err := ses.Wait(); exitCode(err) != 130 {
		t.Errorf("error is: %v", err)
	}
}

func TestSFTP(t *testing.T) {
	s := serveSSH(t)
	c, err := sftp.NewClient(s.login(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.Create("relative-to-home")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(s.home + "/relative-to-home"); err != nil || st.Size() != 1<<20 {
		t.Errorf("%v, %v", st, err)
	}
}

func TestSessionsLeaveNothing(t *testing.T) {
	s := serveSSH(t)
	checkLeavesNothing(t, func() {
		c := s.login(t)
		for _, pty := range []bool{false, true} {
			ses := newSession(t, c)
			if pty {
				if err := ses.RequestPty("dumb", 24, 80, nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := ses.Run("true"); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// checkLeavesNothing checks that repeating run costs no descriptor and no
// goroutine.
func checkLeavesNothing(t *testing.T, run func()) {
	t.Helper()
	count := func() (fds, goroutines int) {
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(open), runtime.NumGoroutine()
	}
	run()
	fdsBefore, goBefore := count()
	for range 10 {
		run()
	}
	// What a session leaves ends on its own time: there is no event to wait
	// for, so look again until it has.
	deadline := time.Now().Add(10 * time.Second)
	for {
		fds, goroutines := count()
		if fds <= fdsBefore && goroutines <= goBefore {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("descriptors %d → %d, goroutines %d → %d", fdsBefore, fds, goBefore, goroutines)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// echoOnce serves one connection, ending when its client has.
func echoOnce(l net.Listener) {
	conn, err := l.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.Copy(conn, conn)
}

func checkEcho(t *testing.T, conn net.Conn) {
	t.Helper()
	const text = "through the channel"
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != text {
		t.Errorf("got %q, %v", got, err)
	}
}
