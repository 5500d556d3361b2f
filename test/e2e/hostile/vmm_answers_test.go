//go:build e2e

package hostile

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// vmmAnswers are what a VMM says in place of an answer to bangerd: once, then
// without end, as fast as it is read.
var vmmAnswers = map[string]struct{ once, endless string }{
	"nothing":            {},
	"headers":            {once: "HTTP/1.1 204 No Content\r\n", endless: "X-Y: " + strings.Repeat("z", 4000) + "\r\n"},
	"one header":         {once: "HTTP/1.1 204 No Content\r\nX: ", endless: strings.Repeat("z", 4000)},
	"interim answers":    {endless: "HTTP/1.1 100 Continue\r\n\r\n"},
	"a fault":            {once: vmmFault + "Content-Length: 1000000000\r\n\r\n{\"fault_message\":\"", endless: strings.Repeat("f", 1<<16)},
	"a fault of escapes": {once: vmmFault + "Content-Length: " + strconv.Itoa(len(vmmEscapes)) + "\r\n\r\n" + vmmEscapes},
	"what is no HTTP":    {endless: "\x1b[2J\xff\x00"},
}

const (
	vmmFault   = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
	vmmEscapes = `{"fault_message":"\u001b[2J\u001b]0;x\u0007\u202e\u009b2J\r y"}`
)

// misanswer takes the connection from the server and says what it is told to.
func misanswer(w http.ResponseWriter, what string) {
	a, known := vmmAnswers[what]
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil || !known {
		refuse(w, fmt.Errorf("%q: %w", what, err))
		return
	}
	defer c.Close()
	fmt.Println("the hostile VMM answers:", what)
	_, err = io.WriteString(c, a.once)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for err == nil {
		if _, err = io.WriteString(c, a.endless); a.endless == "" {
			<-tick.C
		}
	}
}
