package cli

import (
	"io"
	"slices"
	"unicode"
	"unicode/utf8"
)

// plainWriter passes text on without what could command a terminal: control
// characters, and escape sequences as a whole.
type plainWriter struct {
	w    io.Writer
	mode escapeMode
	rest []byte // the beginning of a character
}

// escapeMode is where in an escape sequence the text stands.
type escapeMode int

const (
	outside escapeMode = iota
	escape             // behind ESC
	control            // in ESC [ … up to a letter
	text               // in ESC ] … and its like, up to BEL or ESC \
	textEnd            // behind an ESC in there
	charset            // ESC ( and its like take one character more
)

func (p *plainWriter) Write(b []byte) (int, error) {
	in := slices.Concat(p.rest, b)
	out := make([]byte, 0, len(in))
	for len(in) > 0 && (utf8.FullRune(in) || len(in) >= utf8.UTFMax) {
		r, size := utf8.DecodeRune(in)
		if p.take(r, size) {
			out = append(out, in[:size]...)
		}
		in = in[size:]
	}
	p.rest = append([]byte(nil), in...)
	if _, err := p.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// take tells whether a character is shown.
func (p *plainWriter) take(r rune, size int) bool {
	switch p.mode {
	case escape:
		switch r {
		case '[':
			p.mode = control
		case ']', 'P', 'X', '^', '_':
			p.mode = text
		case '(', ')', '*', '+', '#', '%', ' ':
			p.mode = charset
		default:
			p.mode = outside
		}
		return r == '\n'
	case control:
		if r >= '@' && r <= '~' || r == '\n' {
			p.mode = outside
		}
		return r == '\n'
	case text, textEnd:
		switch {
		case r == '\a' || r == '\n' || p.mode == textEnd && r == '\\':
			p.mode = outside
		case r == '\x1b':
			p.mode = textEnd
		default:
			p.mode = text
		}
		return r == '\n'
	case charset:
		p.mode = outside
		return r == '\n'
	}
	if r == '\x1b' {
		p.mode = escape
		return false
	}
	if r == utf8.RuneError && size == 1 {
		return false
	}
	return r == '\n' || r == '\t' || !unicode.IsControl(r) && !unicode.Is(unicode.Cf, r)
}
