package paas

import (
	"errors"
	"fmt"
)

// Code classifies an error for those who must react to it. Package api maps
// codes to HTTP statuses and back.
type Code string

// The codes.
const (
	// Invalid: the request breaks a rule; Fields or Message says which.
	Invalid Code = "invalid"
	// Unauthorized: who asks is unknown.
	Unauthorized Code = "unauthorized"
	// Forbidden: who asks is known and may not.
	Forbidden Code = "forbidden"
	// NotFound: no such thing.
	NotFound Code = "not found"
	// Conflict: not now, because of something under way or in the way.
	Conflict Code = "conflict"
	// Unavailable: the engine could not do it; the message says why.
	Unavailable Code = "unavailable"
	// Internal is every error without a code; its text stays in our logs.
	Internal Code = "internal"
)

// Error is an error with a message that may be shown to the user.
type Error struct {
	Code    Code
	Message string
	// Details says more, in lines for the user's terminal and the app's log. The API's answer is
	// Message alone, since clients compare it (contract 19).
	Details string
	// Fields maps a request field to its messages; Message is then empty.
	Fields map[string][]string
	// Err is the cause, for our logs only.
	Err error
}

// Text returns message and details.
func (e *Error) Text() string {
	if e.Details == "" {
		return e.Message
	}
	return e.Message + "\n" + e.Details
}

// Error returns message, details and cause, for logs.
func (e *Error) Error() string {
	msg := e.Text()
	if msg == "" && len(e.Fields) > 0 {
		msg = fmt.Sprint(e.Fields)
	}
	if e.Err != nil {
		return msg + ": " + e.Err.Error()
	}
	return msg
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an error whose message may be shown to the user.
func Errorf(code Code, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// FieldError makes an Invalid error about one field of a request.
func FieldError(field, format string, args ...any) error {
	return &Error{Code: Invalid, Fields: map[string][]string{field: {fmt.Sprintf(format, args...)}}}
}

// CodeOf returns the code of the first Error in the chain, Internal if there is
// none, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}
