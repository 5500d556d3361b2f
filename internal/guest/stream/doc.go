// Package stream is how a command in a guest talks to the host: its standard
// streams, its signals, the size of its terminal and its end, as frames on one
// connection to the agent's control port.
//
// # Opening
//
// The host sends
//
//	POST /v1/exec HTTP/1.1
//	Connection: Upgrade
//	Upgrade: banger-exec
//	Content-Length: N
//
// with a guest.Exec as JSON, and goes on with frames at once, without waiting for
// the answer. One other than 101 is an ordinary problem document: nothing was
// started, and the agent closes the connection unread. 101 comes together with the agent's
// first frame, or after a second if there is none yet. A frame is
//
//	1 byte   type
//	4 bytes  length of the payload, big endian, at most 65536
//	         payload
//
// Whether the command could be started is told by the frame exit.
//
// # Frames
//
//	type  name       from   payload
//	1     stdin      host   data, not empty
//	2     stdin end  host   none; no stdin follows
//	3     resize     host   rows, columns: 2 bytes each, big endian
//	4     signal     host   a name without SIG, e.g. INT
//	16    stdout     guest  data, not empty
//	17    stderr     guest  data, not empty
//	18    exit       guest  an Exit as JSON; no frame follows
//	32    credit     both   1 byte: 1, 16 or 17; 4 bytes, big endian: how many
//	                        more bytes of that stream may be sent
//
// A frame of another type, of the wrong side or of a wrong length is an error,
// and an error ends the stream: a change gets another name for Upgrade.
//
// # Credit
//
// At the beginning 262144 bytes of each of stdin, stdout and stderr may be
// sent. The receiver gives more as what came is consumed. So a receiver can
// always take in whatever arrives, without waiting for the command or for the
// reader of its output; signals get through to a command that does not read
// its stdin, and one stream never holds up another.
//
// # Ending
//
// The frame exit comes after all output. Then the host closes the connection;
// nobody closes one direction, since vsock through Firecracker loses data
// after that. If the connection ends earlier, the command is hung up on, as by
// a lost terminal.
package stream

// Where and how a stream is opened.
const (
	Path     = "/v1/exec"
	Protocol = "banger-exec"
)

const (
	headSize   = 5
	maxPayload = 64 << 10  // a pipe's capacity
	window     = 256 << 10 // first credit of each stream
)

// kind is a frame's type.
type kind byte

const (
	kindStdin    kind = 1
	kindStdinEnd kind = 2
	kindResize   kind = 3
	kindSignal   kind = 4
	kindStdout   kind = 16
	kindStderr   kind = 17
	kindExit     kind = 18
	kindCredit   kind = 32
)

// Size is a terminal's.
type Size struct{ Rows, Columns uint16 }

// Exit is how a command ended.
type Exit struct {
	// Code is what a shell would say: the exit status, 128+n after signal n,
	// 127 and 126 for what could not be started.
	Code int `json:"code"`
	// Signal is the name, without SIG, of the signal that ended it.
	Signal string `json:"signal,omitempty"`
	// Error is why it could not be started.
	Error string `json:"error,omitempty"`
}
