package hostnet

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// The rules are installed again when somebody changed them, and only then.
func TestRulesAreInstalledAgainOnlyWhenTheyChanged(t *testing.T) {
	h := newHost(t)
	n := h.open(Options{Name: "deistest", Dir: t.TempDir()})
	keep := func(kept []byte) (now []byte) {
		t.Helper()
		h.do(func() (err error) {
			now, err = n.ensureAgain(t.Context(), kept)
			return err
		})
		if now == nil {
			t.Fatal("what is installed is not certain, though nobody else is here")
		}
		return now
	}
	count := func() (n uint32) {
		h.do(func() (err error) { n, err = generation(); return err })
		return n
	}
	kept := keep(nil)
	before := count()
	if again := keep(kept); !bytes.Equal(again, kept) || count() != before {
		t.Error("installed again though nothing has changed")
	}
	for _, change := range []string{
		"flush chain inet $NAME forward",
		"delete table inet $NAME",
		"add rule inet $NAME input accept",
		"add chain inet $NAME input { policy drop; }",
		"add table inet $NAME { flags dormant; }",
	} {
		h.do(func() error {
			out, err := exec.Command("nft", strings.ReplaceAll(change, "$NAME", n.Name)).CombinedOutput()
			return errors.Join(err, ifAny(out))
		})
		before := count()
		if kept = keep(kept); count() == before {
			t.Errorf("%s: not noticed", change)
		}
	}
	// Another table is nobody's business.
	h.do(func() error { return exec.Command("nft", "add table inet other").Run() })
	before = count()
	if keep(kept); count() != before {
		t.Error("installed again because of another table")
	}
}

func ifAny(out []byte) error {
	if len(out) == 0 {
		return nil
	}
	return errors.New(string(out))
}
