package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/deis/deis/internal/paas"
)

// statusOf is the one map between codes and statuses; the client reads it
// backwards.
var statusOf = map[paas.Code]int{
	paas.Invalid:      http.StatusBadRequest,
	paas.Unauthorized: http.StatusUnauthorized,
	paas.Forbidden:    http.StatusForbidden,
	paas.NotFound:     http.StatusNotFound,
	paas.Conflict:     http.StatusConflict,
	paas.Unavailable:  http.StatusServiceUnavailable,
	paas.Internal:     http.StatusInternalServerError,
}

// StatusOf returns the HTTP status of an error's code.
func StatusOf(err error) int { return statusOf[paas.CodeOf(err)] }

// ErrorBody returns the JSON body for an error (contract 2.3): fields with
// their messages, or detail. Errors without a code show nothing of themselves.
func ErrorBody(err error) any {
	e, ok := errors.AsType[*paas.Error](err)
	switch {
	case !ok || e.Code == paas.Internal:
		return map[string]string{"detail": "Internal error. The controller's log says more."}
	case len(e.Fields) > 0:
		return e.Fields
	default:
		return map[string]string{"detail": e.Message}
	}
}

// StatusError is an answer that the client has no code for.
type StatusError struct {
	Status string // "418 I'm a teapot"
	Body   string
}

func (e *StatusError) Error() string { return strings.TrimSpace(e.Status + "\n" + e.Body) }

// ParseError makes an error of an answer's status and body: a paas.Error with
// the server's text, so that client and server fail alike.
func ParseError(status int, body []byte) error {
	code := paas.Code("")
	for c, s := range statusOf {
		if s == status {
			code = c
		}
	}
	if code == "" {
		return &StatusError{Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), Body: string(body)}
	}
	fields := map[string]json.RawMessage{}
	if json.Unmarshal(body, &fields) != nil {
		return &paas.Error{Code: code, Message: strings.TrimSpace(string(body))}
	}
	for _, key := range []string{"detail", "error"} {
		var text string
		if json.Unmarshal(fields[key], &text) == nil && text != "" {
			return &paas.Error{Code: code, Message: text}
		}
	}
	e := &paas.Error{Code: code, Fields: map[string][]string{}}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		var one string
		var many []string
		if json.Unmarshal(fields[name], &many) != nil && json.Unmarshal(fields[name], &one) == nil {
			many = []string{one}
		}
		e.Fields[name] = many
	}
	return e
}
