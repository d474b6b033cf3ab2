package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/deis/deis/internal/daemon"
)

// record is what the next supervisor must know of a part: the process, if it
// runs, and the addresses of its sockets, which it should get again.
type record struct {
	PID        int               `json:"pid,omitempty"`
	StartTicks uint64            `json:"start_ticks,omitempty"`
	Sockets    map[string]string `json:"sockets,omitempty"` // name: address
}

// alive reports whether the recorded process runs: a pid alone may be another
// process by now.
func (r record) alive() bool {
	if r.PID == 0 {
		return false
	}
	ticks, state, err := startTicks(r.PID)
	return err == nil && ticks == r.StartTicks && state != "Z"
}

const recordsFile = "parts.json"

// readRecords reads what the supervisor before us wrote. A damaged file that nobody has touched since the
// machine started is none: a power cut left it, and no part outlived that.
func readRecords(dir string) (map[string]record, error) {
	path := filepath.Join(dir, recordsFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var records map[string]record
	if damage := json.Unmarshal(b, &records); damage != nil {
		fi, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if fi.ModTime().Before(startTime(0)) {
			return nil, nil
		}
		return nil, fmt.Errorf("%s is damaged (%w), so it is not known which parts run: end those of this platform that do, remove the file and start again",
			path, damage)
	}
	return records, nil
}

func writeRecords(dir string, records map[string]record) error {
	b, err := json.MarshalIndent(records, "", "  ")
	if err != nil {
		return err
	}
	return daemon.WriteFile(filepath.Join(dir, recordsFile), b, 0o600)
}

// Left returns the parts that an earlier supervisor recorded in dir and that
// still run, in the order of names. No supervisor may run there.
func Left(dir string, names []string) ([]Status, error) {
	records, err := readRecords(dir)
	if err != nil {
		return nil, err
	}
	var left []Status
	for _, name := range names {
		if rec := records[name]; rec.alive() {
			left = append(left, Status{
				Name: name, State: Running, PID: rec.PID, Memory: residentMemory(rec.PID),
				Uptime: int64(time.Since(startTime(rec.StartTicks)).Seconds()),
			})
		}
	}
	return left, nil
}

// StopLeft ends what Left lists, in the order of names, and tells after each.
func StopLeft(dir string, names []string, grace time.Duration, tell func(name string)) error {
	records, err := readRecords(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if p := adopt(records[name]); p != nil {
			p.stop(grace)
			tell(name)
		}
	}
	return nil
}

// Socket is a listening TCP socket that belongs to the supervisor, so that it
// stays open while the part behind it is started again.
type Socket struct {
	// Name is how the part asks for it.
	Name string
	// Addr is host:port, with the real port.
	Addr string

	mu sync.Mutex
	l  *net.TCPListener
}

// OpenSocket opens addr for a part. Port 0 means any port, but the one that the
// part had before, if it can be had. A part that still runs from an earlier
// supervisor has its socket already; it is then opened only when the part dies.
func (s *Supervisor) OpenSocket(part, name, addr string) (*Socket, error) {
	records, err := readRecords(s.dir)
	if err != nil {
		return nil, err
	}
	sock := &Socket{Name: name, Addr: addr}
	rec := records[part]
	before := rec.Sockets[name]
	if before != "" && rec.alive() {
		sock.Addr = before
		return sock, nil
	}
	if _, port, err := net.SplitHostPort(addr); err == nil && port == "0" && before != "" {
		sock.Addr = before
		if sock.listen() == nil {
			return sock, nil
		}
		sock.Addr = addr
	}
	return sock, sock.listen()
}

func (s *Socket) listen() error {
	l, err := net.Listen("tcp", s.Addr)
	if err != nil {
		return fmt.Errorf("%s address: %w", s.Name, err)
	}
	s.l = l.(*net.TCPListener)
	s.Addr = l.Addr().String()
	return nil
}

// file returns a duplicate of the socket for a child.
func (s *Socket) file() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.l == nil {
		if err := s.listen(); err != nil {
			return nil, err
		}
	}
	return s.l.File()
}

func (s *Socket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.l != nil {
		s.l.Close()
	}
	s.l = nil
}
