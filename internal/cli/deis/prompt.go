package deis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/term"
)

// errNoTerminal: there is nobody to ask.
var errNoTerminal = errors.New("standard input is not a terminal")

// isTerminal reports whether a stream is one.
func isTerminal(stream any) bool {
	f, ok := stream.(interface{ Fd() uintptr })
	return ok && term.IsTerminal(int(f.Fd()))
}

// ask prints a prompt and reads a line.
func (c *cli) ask(ctx context.Context, prompt string) (string, error) {
	if !isTerminal(c.in) {
		return "", errNoTerminal
	}
	fmt.Fprint(c.err, prompt)
	return await(ctx, func() (string, error) { return readLine(c.in) })
}

// confirm asks a question that "y" affirms. As with the original, the answer
// may come from a pipe; errNoTerminal says that nobody answered.
func (c *cli) confirm(ctx context.Context, question string) (bool, error) {
	answer, err := c.reply(ctx, question)
	return strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes"), err
}

// reply is ask where the answer may come from a pipe.
func (c *cli) reply(ctx context.Context, prompt string) (string, error) {
	if isTerminal(c.in) {
		return c.ask(ctx, prompt)
	}
	fmt.Fprint(c.err, prompt)
	answer, err := awaitLine(ctx, func() (string, error) { return readLine(c.in) })
	fmt.Fprintln(c.err)
	if errors.Is(err, io.EOF) {
		err = errNoTerminal
	}
	return answer, err
}

// askSecret is ask without echo.
func (c *cli) askSecret(ctx context.Context, prompt string) (string, error) {
	if !isTerminal(c.in) {
		return "", errNoTerminal
	}
	fd := int(c.in.(interface{ Fd() uintptr }).Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("read the terminal's state: %w", err)
	}
	defer func() { _ = term.Restore(fd, state) }() // where ctx ends first, the terminal still hides what is typed
	fmt.Fprint(c.err, prompt)
	defer fmt.Fprintln(c.err)
	return await(ctx, func() (string, error) {
		secret, err := term.ReadPassword(fd)
		return string(secret), err
	})
}

// await is awaitLine where the end of the input is a failure.
func await(ctx context.Context, read func() (string, error)) (string, error) {
	text, err := awaitLine(ctx, read)
	if errors.Is(err, io.EOF) {
		return "", fail("No answer was given.")
	}
	return text, err
}

// awaitLine returns when read does or ctx ends; then the read is left to the end
// of the process, since nothing can interrupt it.
func awaitLine(ctx context.Context, read func() (string, error)) (string, error) {
	type answer struct {
		text string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		text, err := read()
		got <- answer{text, err}
	}()
	select {
	case a := <-got:
		return a.text, a.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// readLine reads to the end of a line and no further: what follows may be for
// the next prompt.
func readLine(r io.Reader) (string, error) {
	line, b := []byte{}, make([]byte, 1)
	for {
		n, err := r.Read(b)
		switch {
		case n == 1 && b[0] == '\n':
			return strings.TrimSpace(string(line)), nil
		case n == 1:
			line = append(line, b[0])
		case errors.Is(err, io.EOF) && len(line) > 0:
			return strings.TrimSpace(string(line)), nil
		case err != nil:
			return "", err
		}
	}
}

// askOption fills an option that was not given. Without a terminal it fails and
// says which option to give.
func (c *cli) askOption(ctx context.Context, value *string, option, prompt string, secret bool) error {
	if *value != "" {
		return nil
	}
	ask := c.ask
	if secret {
		ask = c.askSecret
	}
	text, err := ask(ctx, prompt+": ")
	if errors.Is(err, errNoTerminal) {
		return &failure{text: "There is no terminal to ask on, so --" + option + " is needed.", status: statusUsage}
	}
	if err == nil && text == "" {
		err = &failure{text: "An empty " + prompt + " will not do.", status: statusUsage}
	}
	*value = text
	return err
}

// askNewPassword asks twice, unless the option was given.
func (c *cli) askNewPassword(ctx context.Context, value *string, option, prompt string) error {
	if *value != "" {
		return nil
	}
	if err := c.askOption(ctx, value, option, prompt, true); err != nil {
		return err
	}
	again, err := c.askSecret(ctx, prompt+" (again): ")
	if err == nil && again != *value {
		err = fail("The passwords do not match; nothing was done.")
	}
	return err
}
