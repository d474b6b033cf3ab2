package gitserver

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/deis/deis/internal/paas"
)

// The verbs that a command may have.
const (
	verbPing    = "ping"
	verbReceive = "receive-pack"
	verbUpload  = "upload-pack"
)

type command struct {
	verb string
	app  string // app id; empty for ping
}

// maxCommand is far more than a verb and a name of at most 64 letters.
const maxCommand = 1024

// parseCommand reads what a client asks to run (contract 9.1):
// git-receive-pack 'app.git', git-upload-pack /app, ping.
func parseCommand(line string) (command, error) {
	words, err := splitWords(line)
	if err != nil {
		return command{}, err
	}
	// "git receive-pack" is how clients are told to ask without the dash.
	if len(words) > 1 && words[0] == "git" {
		words = append([]string{"git-" + words[1]}, words[2:]...)
	}
	switch {
	case len(words) == 1 && words[0] == verbPing:
		return command{verb: verbPing}, nil
	case len(words) == 2 && (words[0] == "git-"+verbReceive || words[0] == "git-"+verbUpload):
		app, err := appOfPath(words[1])
		return command{verb: strings.TrimPrefix(words[0], "git-"), app: app}, err
	}
	return command{}, unknownCommand(line)
}

func unknownCommand(line string) error {
	return paas.Errorf(paas.Invalid, "%s is not known here: this server takes git push, git fetch and ping.", quote(line))
}

func appOfPath(path string) (string, error) {
	app := strings.TrimSuffix(strings.TrimPrefix(path, "/"), ".git")
	if len(paas.CheckAppID(app)) > 0 {
		return "", paas.Errorf(paas.Invalid, "%s names no app: a remote ends in /<app>.git, with letters a-z, digits and dashes.", quote(path))
	}
	return app, nil
}

// splitWords splits a line as a shell would where it holds only plain words
// and quotes, and refuses everything else that a shell knows.
func splitWords(line string) ([]string, error) {
	if len(line) > maxCommand {
		return nil, unknownCommand(line)
	}
	var words []string
	var word strings.Builder
	var mark byte // the open quote
	inWord := false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case mark == '\'' && c != '\'', mark == '"' && !strings.ContainsRune(`"\$`+"`", rune(c)):
			word.WriteByte(c)
		case mark != 0 && c == mark:
			mark = 0
		case mark == 0 && (c == '\'' || c == '"'):
			mark, inWord = c, true
		case c == '\\' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
			inWord = true
		case mark == 0 && (c == ' ' || c == '\t'):
			if inWord {
				words, inWord = append(words, word.String()), false
				word.Reset()
			}
		case mark == 0 && plain(c):
			word.WriteByte(c)
			inWord = true
		default:
			return nil, unknownCommand(line)
		}
	}
	if mark != 0 {
		return nil, unknownCommand(line)
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

func plain(c byte) bool {
	return c >= 0x80 || unicode.IsLetter(rune(c)) || unicode.IsDigit(rune(c)) || strings.IndexByte("-_./:@%+=,~", c) >= 0
}

// quote makes strangers' text fit for a line on a terminal.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
