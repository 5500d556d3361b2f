package cli

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestPlainWriter(t *testing.T) {
	for in, want := range map[string]string{
		"a\tb\r\nc":                      "a\tb\nc",
		"\x1b[1;32mgreen\x1b[0m":         "green",
		"\x1b]0;title\aafter":            "after",
		"\x1b]8;;x\x1b\\link\x1b]8;;\a!": "link!",
		"\x1bP1$r\x1b\\x":                "x",
		"\x1b(Bx\x1bc\x1b7y":             "xy",
		"bell\a del\x7f nul\x00":         "bell del nul",
		"c1 \u009b2J end":                "c1 2J end",
		"rtl \u202e end":                 "rtl  end",
		"é\xff€":                         "é€",
		"\x1b[31\nnext":                  "\nnext", // a line ends every sequence
		"\x1b]0;no end\nnext":            "\nnext",
	} {
		var whole, bytewise bytes.Buffer
		_, _ = (&plainWriter{w: &whole}).Write([]byte(in))
		p := &plainWriter{w: &bytewise}
		for i := range len(in) {
			_, _ = p.Write([]byte{in[i]})
		}
		if whole.String() != want || bytewise.String() != want {
			t.Errorf("%q: %q at once, %q byte by byte, want %q", in, whole.String(), bytewise.String(), want)
		}
	}
}

func FuzzPlainWriter(f *testing.F) {
	f.Add([]byte("\x1b[2J\x1b]0;x\a\xe2\x82"), 3)
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		var whole, parts bytes.Buffer
		_, _ = (&plainWriter{w: &whole}).Write(in)
		p := &plainWriter{w: &parts}
		cut = max(0, min(cut, len(in)))
		_, _ = p.Write(in[:cut])
		_, _ = p.Write(in[cut:])
		if whole.String() != parts.String() {
			t.Errorf("%q cut at %d: %q, at once %q", in, cut, parts.String(), whole.String())
		}
		if !utf8.Valid(whole.Bytes()) || strings.ContainsFunc(whole.String(), func(r rune) bool { return r != '\n' && r != '\t' && unicode.IsControl(r) }) {
			t.Errorf("%q became %q", in, whole.String())
		}
	})
}
