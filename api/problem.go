package api

import "fmt"

// Problem is the error document of every banger HTTP interface (RFC 9457 with
// two extra members). It is also a Go error, so that a failure travels from
// helper to person without being retold.
type Problem struct {
	Title  string `json:"title,omitempty"`
	Status int    `json:"status"`
	// Detail is one sentence: what could not be done and why.
	Detail string `json:"detail"`
	// Code is stable and made for programs, e.g. "not_found".
	Code string `json:"code"`
	// Hint is the next step a person can take; may be empty.
	Hint string `json:"hint,omitempty"`
}

// Codes that programs may rely on. Others exist; treat an unknown code by Status.
const (
	CodeBadRequest   = "bad_request"
	CodeNotFound     = "not_found"
	CodeConflict     = "conflict"
	CodeForbidden    = "forbidden"
	CodeInternal     = "internal"
	CodeUnavailable  = "unavailable"
	CodeCancelled    = "cancelled"
	CodeNoSpace      = "no_space"
	CodePrerequisite = "prerequisite"
	CodePaused       = "paused" // of a VM that could not answer
	CodeNotRunning   = "not_running"
	CodeEnding       = "ending" // bangerd was told to end before the work was done
)

func (p *Problem) Error() string { return p.Detail }

// GetStatus lets huma answer with this document as it is.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is the media type RFC 9457 gives to such a document.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// WithHint returns a copy of p that carries a next step.
func (p *Problem) WithHint(format string, args ...any) *Problem {
	q := *p
	q.Hint = fmt.Sprintf(format, args...)
	return &q
}

// Problemf makes a Problem. status is an HTTP status.
func Problemf(status int, code, format string, args ...any) *Problem {
	return &Problem{Status: status, Code: code, Detail: fmt.Sprintf(format, args...)}
}

// BadRequest, NotFound, Conflict and Internal are the four everyday problems.
func BadRequest(format string, args ...any) *Problem {
	return Problemf(400, CodeBadRequest, format, args...)
}

// NotFound says that a thing named by the caller does not exist.
func NotFound(format string, args ...any) *Problem {
	return Problemf(404, CodeNotFound, format, args...)
}

// Conflict says that the present state forbids the request.
func Conflict(format string, args ...any) *Problem {
	return Problemf(409, CodeConflict, format, args...)
}

// Internal says that the request was fine and banger failed.
func Internal(format string, args ...any) *Problem {
	return Problemf(500, CodeInternal, format, args...)
}
