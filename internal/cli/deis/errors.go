package deis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/spf13/cobra"
)

// The exit statuses besides 0.
const (
	statusError       = 1
	statusUsage       = 2
	statusInterrupted = 130 // as shells have it: 128 + SIGINT
)

// failure is an error as the user sees it.
type failure struct {
	// text is what went wrong; it may have several lines.
	text string
	// next is what to type now, the likeliest first.
	next   []string
	status int // statusError when 0
	err    error
}

func (f *failure) Error() string { return f.text }

// Unwrap returns the cause, for those who must tell failures apart.
func (f *failure) Unwrap() error { return f.err }

// fail makes a failure from a text and the commands that may help.
func fail(text string, next ...string) error { return &failure{text: text, next: next} }

// usage makes the failure of a command line that cannot be understood.
func usage(cmd *cobra.Command, format string, args ...any) error {
	text := fmt.Sprintf(format, args...) + "\nUsage: " + useLine(cmd)
	next := strings.TrimSpace("deis help " + strings.TrimPrefix(cmd.CommandPath(), "deis"))
	if cmd.HasParent() {
		next = "deis help " + cmd.Name()
	}
	return &failure{text: text, next: []string{next}, status: statusUsage}
}

// exitStatus ends the program with a status and no message.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// report prints an error, if there is one, and returns the exit status.
func (c *cli) report(ctx context.Context, err error) int {
	status, isStatus := errors.AsType[exitStatus](err)
	switch {
	case err == nil:
		return 0
	case isStatus:
		return int(status)
	case ctx.Err() != nil:
		c.complain("Interrupted.")
		return statusInterrupted
	}
	f := c.explain(ctx, err)
	c.complain("%s", f.text)
	c.try(f.next...)
	return max(f.status, statusError)
}

// try says what to type next, the likeliest first.
func (c *cli) try(next ...string) {
	for i, line := range next {
		lead := "Try: "
		if i > 0 {
			lead = " or: "
		}
		c.complain("%s%s", lead, line)
	}
}

// explain says in the user's terms what went wrong.
func (c *cli) explain(ctx context.Context, err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if e, ok := errors.AsType[*paas.Error](err); ok {
		return c.explainAnswer(ctx, e)
	}
	if e, ok := errors.AsType[*api.StatusError](err); ok {
		return &failure{text: "The controller answered " + e.Status + "." + below(plain(e.Body))}
	}
	if e, ok := errors.AsType[*url.Error](err); ok && c.session != nil {
		return c.session.explainTransport(e)
	}
	return &failure{text: sentence(err.Error())}
}

// explainAnswer is explain for errors that the controller sent.
func (c *cli) explainAnswer(ctx context.Context, e *paas.Error) *failure {
	text := answerText(e)
	switch {
	case e.Code == paas.Unauthorized && c.session.Token != "":
		return &failure{
			text: "Your login is not valid any more.",
			next: []string{"deis login " + c.session.Controller + " --username=" + c.session.Username},
		}
	case e.Code == paas.NotFound && c.current != "" && c.appIsMissing(ctx):
		return c.noSuchApp()
	case e.Code == paas.Internal:
		return &failure{text: "The controller failed; its log says more." + below(text)}
	case strings.Contains(text, "HTTP request to an HTTPS server"):
		secure := "https" + strings.TrimPrefix(c.session.Controller, "http")
		return &failure{text: c.session.Controller + " speaks HTTPS.", next: []string{"deis login " + secure}}
	case text == "":
		return &failure{text: fmt.Sprintf("The controller answered %d.", api.StatusOf(e))}
	}
	return &failure{text: text, next: c.advice(ctx, e, text)}
}

// advice is what to type after what the controller says (contract 19).
func (c *cli) advice(ctx context.Context, e *paas.Error, text string) []string {
	controller := c.session.Controller
	for words, next := range map[string][]string{
		"No build associated": {"git push deis master", "deis pull <image> --app=" + c.current},
		"Unable to log in": {
			"deis login " + controller + "      with another name or password",
			"deis register " + controller + "   if you have no account",
		},
		"still has applications assigned": {"deis apps", "deis apps:transfer <user> --app=<app>", "deis destroy --app=<app>"},
		"Registration is disabled":        {"deis login " + controller},
		"already in progress":             {"the same again in a moment"},
		"does not exist in application":   {"deis ps --app=" + c.current + "   to see the types that run"},
	} {
		if strings.Contains(text, words) {
			return next
		}
	}
	if e.Code == paas.Forbidden && c.session.Token != "" {
		return []string{c.permission(ctx)}
	}
	return nil
}

// permission is what somebody else can type so that the user may.
func (c *cli) permission(ctx context.Context) string {
	switch {
	case c.current == "":
		return "deis perms:create " + c.session.Username + " --admin   as an administrator"
	case c.session.api.Call(ctx, http.MethodGet, appPath(c.current, ""), nil, nil) == nil: // a collaborator already
		return "deis info --app=" + c.current + "   to see the owner: only he may do that"
	}
	return "deis perms:create " + c.session.Username + " --app=" + c.current + "   as its owner"
}

// appIsMissing tells a missing app from something missing in an app.
func (c *cli) appIsMissing(ctx context.Context) bool {
	return paas.CodeOf(c.session.api.Call(ctx, http.MethodGet, appPath(c.current, ""), nil, nil)) == paas.NotFound
}

func (c *cli) noSuchApp() *failure {
	text := "There is no app " + c.current + "."
	if c.guessed {
		text += "\nNo git remote here belongs to " + c.session.Controller + ", so the name is the directory's."
	}
	return &failure{text: text, next: []string{
		"deis apps             to see your apps, then add --app=<app>",
		"deis create " + c.current,
	}}
}

// answerText is the text of an error body (contract 2.3).
func answerText(e *paas.Error) string {
	if len(e.Fields) == 0 {
		return plain(e.Message)
	}
	lines := []string{}
	for _, field := range slices.Sorted(maps.Keys(e.Fields)) {
		for _, message := range e.Fields[field] {
			if field != "non_field_errors" {
				message = field + ": " + message
			}
			lines = append(lines, message)
		}
	}
	return strings.Join(lines, "\n")
}

// fieldError reports whether the controller complained about a field in these
// words.
func fieldError(err error, field, words string) bool {
	e, ok := errors.AsType[*paas.Error](err)
	return ok && strings.Contains(strings.Join(e.Fields[field], "\n"), words)
}

// notUnique is what a taken name is answered with (contract 19).
const notUnique = "must be unique"

// maxForeignText bounds what is shown of an answer that is not in the
// controller's own form, in bytes.
const maxForeignText = 500

// plain is an answer's text, without the pages that proxies send.
func plain(body string) string {
	body = strings.TrimSpace(body)
	if strings.HasPrefix(body, "<") {
		return ""
	}
	return body[:min(len(body), maxForeignText)]
}

func below(text string) string {
	if text == "" {
		return ""
	}
	return "\n" + text
}

// sentence makes a sentence of an error's text.
func sentence(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return s
	}
	s = strings.ToUpper(s[:1]) + s[1:]
	if strings.HasSuffix(s, ".") {
		return s
	}
	return s + "."
}

// otherController is what to type where the address may be wrong.
const otherController = "deis login <controller>   with its address, usually http://deis.<domain>"

// explainTransport says why the controller could not be asked.
func (s *session) explainTransport(err *url.Error) *failure {
	again := "deis login " + s.Controller
	if cert, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &failure{
			text: "The certificate of " + s.Controller + " is not trusted: " + cert.Err.Error(),
			next: []string{
				"export SSL_CERT_FILE=<authority.pem>   to trust the authority that signed it",
				again + " --ssl-verify=false   to trust any certificate from now on",
			},
		}
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		insecure := "http" + strings.TrimPrefix(s.Controller, "https")
		return &failure{text: s.Controller + " does not speak HTTPS.", next: []string{"deis login " + insecure}}
	}
	text := "Cannot reach the controller at " + s.Controller + ": "
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		reason := "the name " + dns.Name + " is not known."
		if !dns.IsNotFound {
			reason = "your name server does not answer for " + dns.Name + ": " + dns.Err
		}
		return &failure{text: text + reason, next: []string{"getent hosts " + dns.Name + "   to see whether the name can be found", otherController}}
	}
	reason := err.Err.Error()
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		reason = "nothing listens there (connection refused)."
	case err.Timeout():
		reason = fmt.Sprintf("no answer within %s.", dialTime)
	case strings.Contains(reason, "malformed HTTP"):
		reason = "what answers there is no web server."
	}
	return &failure{text: text + reason, next: []string{"deisctl status   on the server, to see whether it runs", otherController}}
}
