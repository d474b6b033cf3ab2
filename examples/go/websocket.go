package main

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

const maxMessage = 1 << 20

// The opcodes of RFC 6455, section 5.2.
const (
	opContinue = 0x0
	opText     = 0x1
	opBinary   = 0x2
	opClose    = 0x8
	opPing     = 0x9
	opPong     = 0xa
)

// echo is a WebSocket (RFC 6455) that sends back every message. When ctx ends it
// says goodbye to the client.
func echo(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-WebSocket-Key")
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || r.Header.Get("Sec-WebSocket-Version") != "13" || key == "" {
		w.Header().Set("Sec-WebSocket-Version", "13")
		http.Error(w, "this path is a WebSocket", http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	if rw.Flush() != nil {
		return
	}
	var mu sync.Mutex
	send := func(op byte, payload []byte) error {
		mu.Lock()
		defer mu.Unlock()
		writeFrame(rw.Writer, op, payload)
		return rw.Flush()
	}
	goodbye := context.AfterFunc(ctx, func() { send(opClose, closePayload(1001)) })
	defer goodbye()
	var message []byte
	var kind byte
	for {
		final, op, payload, err := readFrame(rw.Reader)
		if err != nil {
			return
		}
		switch op {
		case opText, opBinary, opContinue:
			if op != opContinue {
				kind, message = op, nil
			}
			if message = append(message, payload...); len(message) > maxMessage {
				send(opClose, closePayload(1009))
				return
			}
			if final && send(kind, message) != nil {
				return
			}
		case opPing:
			err = send(opPong, payload)
		case opClose:
			send(opClose, payload)
			return
		}
		if err != nil {
			return
		}
	}
}

func closePayload(code uint16) []byte { return binary.BigEndian.AppendUint16(nil, code) }

// readFrame reads one frame of a client; these are masked.
func readFrame(r *bufio.Reader) (final bool, op byte, payload []byte, err error) {
	var head [2]byte
	if _, err = io.ReadFull(r, head[:]); err != nil {
		return
	}
	size := uint64(head[1] & 0x7f)
	if size >= 126 {
		long := make([]byte, map[uint64]int{126: 2, 127: 8}[size])
		if _, err = io.ReadFull(r, long); err != nil {
			return
		}
		size = 0
		for _, b := range long {
			size = size<<8 | uint64(b)
		}
	}
	if size > maxMessage || head[1]&0x80 == 0 {
		return false, 0, nil, errors.New("frame too large or not masked")
	}
	var mask [4]byte
	if _, err = io.ReadFull(r, mask[:]); err != nil {
		return
	}
	payload = make([]byte, size)
	_, err = io.ReadFull(r, payload)
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return head[0]&0x80 != 0, head[0] & 0x0f, payload, err
}

// writeFrame writes one whole message; errors show when the writer is flushed.
func writeFrame(w *bufio.Writer, op byte, payload []byte) {
	w.WriteByte(0x80 | op)
	switch n := len(payload); {
	case n < 126:
		w.WriteByte(byte(n))
	case n < 1<<16:
		w.WriteByte(126)
		w.Write(binary.BigEndian.AppendUint16(nil, uint16(n)))
	default:
		w.WriteByte(127)
		w.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
	}
	w.Write(payload)
}
