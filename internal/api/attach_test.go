package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/deis/deis/internal/paas"
)

// TestFrames: what is sent is read again, long output in several frames.
func TestFrames(t *testing.T) {
	var wire bytes.Buffer
	f := NewFrames(&wire)
	long := strings.Repeat("0123456789", MaxFrame/4)
	if n, err := io.WriteString(f.Stream(FrameOutput), long); n != len(long) || err != nil {
		t.Fatalf("wrote %d of %d: %v", n, len(long), err)
	}
	f.Send(FrameInput, nil)
	f.SendNumber(FrameExit, 137)
	f.Send(FrameResize, SizePayload(120, 50))
	f.Send(FrameFault, FaultPayload(503, []byte(`{"detail":"no room"}`)))
	if err := f.Send(FrameOutput, make([]byte, MaxFrame+1)); err == nil {
		t.Error("a frame that is too long was sent")
	}

	buf := make([]byte, MaxFrame)
	next := func(want FrameKind) []byte {
		t.Helper()
		kind, payload, err := ReadFrame(&wire, buf)
		if err != nil || kind != want {
			t.Fatalf("frame %c, %v, want %c", kind, err, want)
		}
		return payload
	}
	text := ""
	for len(text) < len(long) {
		text += string(next(FrameOutput))
	}
	if text != long {
		t.Error("the output differs")
	}
	if p := next(FrameInput); len(p) != 0 {
		t.Errorf("end of input: %q", p)
	}
	if n, err := FrameNumber(next(FrameExit)); n != 137 || err != nil {
		t.Errorf("exit code %d, %v", n, err)
	}
	if w, h, err := ParseSize(next(FrameResize)); w != 120 || h != 50 || err != nil {
		t.Errorf("size %dx%d, %v", w, h, err)
	}
	if err := ParseFault(next(FrameFault)); paas.CodeOf(err) != paas.Unavailable || err.Error() != "no room" {
		t.Errorf("fault %v", err)
	}
	if _, _, err := ReadFrame(&wire, buf); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestReadFrameRefuses(t *testing.T) {
	for wire, want := range map[string]error{
		"":                   io.EOF,
		"o":                  io.ErrUnexpectedEOF,
		"o\x00\x00\x00\x05":  io.ErrUnexpectedEOF,
		"o\x00\x00\x00\x05a": io.ErrUnexpectedEOF,
		"HTTP/1.1":           ErrFrameTooLong,
		"o\x00\x00\x80\x01":  ErrFrameTooLong,
	} {
		if _, _, err := ReadFrame(strings.NewReader(wire), make([]byte, MaxFrame)); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", wire, err, want)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("o\x00\x00\x00\x02hi"))
	f.Add([]byte("x\x00\x00\x00\x04\x00\x00\x00\x07r\x00\x00\x00\x04\x00\x50\x00\x18f\x00\x00\x00\x02\x01\xf7"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		r, buf, again := bytes.NewReader(wire), make([]byte, MaxFrame), &bytes.Buffer{}
		for {
			kind, payload, err := ReadFrame(r, buf)
			if err != nil {
				break
			}
			_, _ = FrameNumber(payload)
			_, _, _ = ParseSize(payload)
			if ParseFault(payload) == nil {
				t.Errorf("a fault of %q is no error", payload)
			}
			if err := NewFrames(again).Send(kind, payload); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(wire, again.Bytes()) {
			t.Errorf("%q is sent again as %q", wire, again)
		}
	})
}

func TestAsksUpgrade(t *testing.T) {
	for _, test := range []struct {
		connection, upgrade string
		want                bool
	}{
		{"Upgrade", RunProtocol, true},
		{"keep-alive, upgrade", "other, " + strings.ToUpper(RunProtocol), true},
		{"", RunProtocol, false},
		{"Upgrade", "", false},
		{"Upgrade", "deis-run/2", false},
		{"Upgrade", "websocket", false},
	} {
		h := http.Header{}
		h.Set("Connection", test.connection)
		h.Set("Upgrade", test.upgrade)
		if got := AsksUpgrade(h, RunProtocol); got != test.want {
			t.Error(fmt.Sprint(test), got)
		}
	}
}
