package api

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// RunProtocol is what a connection speaks after POST /v1/apps/<id>/run with
// "Connection: Upgrade" and "Upgrade: deis-run/1" was answered with 101. A
// server that does not know it, or a proxy that drops these headers, gives the
// plain answer of contract 5.7 instead.
//
// Both sides send frames: one byte for the kind, the length of the payload as
// four bytes, big-endian, and the payload, of at most MaxFrame bytes. The
// server ends the connection after FrameExit or FrameFault. A client that ends
// it, or is silent for RunSilence, ends the process.
const RunProtocol = "deis-run/1"

// A FrameKind says what a frame's payload is.
type FrameKind byte

// The kinds. A receiver ignores those that it does not know.
const (
	// FrameInput is stdin, from the client; an empty one is its end.
	FrameInput FrameKind = 'i'
	// FrameResize is the terminal's new size, from the client: columns and
	// rows, two bytes each, big-endian.
	FrameResize FrameKind = 'r'
	// FrameAlive is empty; a client sends one each RunAlive.
	FrameAlive FrameKind = 'a'

	// FrameOutput and FrameErrors are stdout and stderr, from the server; all
	// that a terminal shows is stdout.
	FrameOutput FrameKind = 'o'
	FrameErrors FrameKind = 'e'
	// FrameWanted lets the client send more of stdin: as many bytes as its four
	// bytes say, big-endian, on top of the InputWindow that it starts with.
	// So the server never has to stop reading.
	FrameWanted FrameKind = 'w'
	// FrameExit is the end: the exit code, four bytes, big-endian.
	FrameExit FrameKind = 'x'
	// FrameFault is an end without exit code: an HTTP status, two bytes,
	// big-endian, and the body of an answer with it.
	FrameFault FrameKind = 'f'
)

const (
	// MaxFrame bounds a payload, in bytes.
	MaxFrame = 32 << 10
	// InputWindow is how much of stdin may be under way, in bytes.
	InputWindow = 64 << 10
	// RunAlive is how often a client shows that it is there. It is far below the
	// time after which proxies close connections.
	RunAlive = 20 * time.Second
	// RunSilence is how long a server waits for a sign of the client.
	RunSilence = 3 * RunAlive
)

// RunRequest is the body of POST /v1/apps/<id>/run.
type RunRequest struct {
	Command string `json:"command"`
	// Terminal asks for one; plain runs ignore it.
	Terminal *RunTerminal `json:"terminal,omitempty"`
}

// RunTerminal describes the client's terminal: the value of TERM, and its size
// in characters.
type RunTerminal struct {
	Name    string `json:"name"`
	Columns uint16 `json:"columns"`
	Rows    uint16 `json:"rows"`
}

// AsksUpgrade reports whether a request asks for a protocol (RFC 9110, 7.8).
func AsksUpgrade(h http.Header, protocol string) bool {
	return hasToken(h.Values("Connection"), "upgrade") && hasToken(h.Values("Upgrade"), protocol)
}

func hasToken(values []string, token string) bool {
	for item := range strings.SplitSeq(strings.Join(values, ","), ",") {
		if strings.EqualFold(strings.TrimSpace(item), token) {
			return true
		}
	}
	return false
}

// frameHead is the length of kind and length.
const frameHead = 5

// Frames writes frames. It may be used concurrently; each frame is one Write.
type Frames struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// NewFrames returns a writer of frames.
func NewFrames(w io.Writer) *Frames { return &Frames{w: w} }

// Send writes one frame.
func (f *Frames) Send(kind FrameKind, payload []byte) error {
	if len(payload) > MaxFrame {
		return fmt.Errorf("a frame of %d bytes is too long", len(payload))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buf = append(f.buf[:0], byte(kind))
	f.buf = binary.BigEndian.AppendUint32(f.buf, uint32(len(payload)))
	f.buf = append(f.buf, payload...)
	_, err := f.w.Write(f.buf)
	return err
}

// SendNumber writes a frame that holds a number.
func (f *Frames) SendNumber(kind FrameKind, n uint32) error {
	return f.Send(kind, binary.BigEndian.AppendUint32(nil, n))
}

// Stream returns a writer whose text becomes frames of one kind.
func (f *Frames) Stream(kind FrameKind) io.Writer { return &frameStream{f, kind} }

type frameStream struct {
	frames *Frames
	kind   FrameKind
}

func (s *frameStream) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		part := p[sent:min(sent+MaxFrame, len(p))]
		if err := s.frames.Send(s.kind, part); err != nil {
			return sent, err
		}
		sent += len(part)
	}
	return sent, nil
}

// ErrFrameTooLong says that the other side does not speak RunProtocol.
var ErrFrameTooLong = errors.New("a frame is longer than the protocol allows")

// ReadFrame reads one frame. The payload is in buf, of MaxFrame bytes, until the
// next call. The error is io.EOF between two frames only.
func ReadFrame(r io.Reader, buf []byte) (FrameKind, []byte, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > MaxFrame {
		return 0, nil, ErrFrameTooLong
	}
	payload := buf[:size]
	if _, err := io.ReadFull(r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return FrameKind(head[0]), payload, nil
}

// FrameNumber reads the payload of a frame that holds a number.
func FrameNumber(payload []byte) (uint32, error) {
	if len(payload) != 4 {
		return 0, fmt.Errorf("a number of %d bytes", len(payload))
	}
	return binary.BigEndian.Uint32(payload), nil
}

// SizePayload is the payload of FrameResize, ParseSize reads it.
func SizePayload(columns, rows uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, columns), rows)
}

// ParseSize reads the payload of FrameResize.
func ParseSize(payload []byte) (columns, rows uint16, err error) {
	if len(payload) != 4 {
		return 0, 0, fmt.Errorf("a size of %d bytes", len(payload))
	}
	return binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:]), nil
}

// FaultPayload is the payload of FrameFault; a long body is cut.
func FaultPayload(status int, body []byte) []byte {
	payload := binary.BigEndian.AppendUint16(nil, uint16(status))
	return append(payload, body[:min(len(body), MaxFrame-2)]...)
}

// ParseFault turns the payload of FrameFault into the error of ParseError.
func ParseFault(payload []byte) error {
	if len(payload) < 2 {
		return errors.New("the controller failed without a word")
	}
	return ParseError(int(binary.BigEndian.Uint16(payload)), payload[2:])
}
