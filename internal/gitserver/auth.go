package gitserver

import (
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"

	"github.com/deis/deis/internal/paas"
)

// client is one connection.
type client struct {
	handshake *time.Timer
	sessions  atomic.Int32

	mu      sync.Mutex
	offered map[string]caller // by key in wire form
}

// caller is who is behind a key, or why that could not be said.
type caller struct {
	key  string
	user User
	err  error
}

type (
	clientKey struct{}
	callerKey struct{}
)

func clientOf(ctx ssh.Context) *client { return ctx.Value(clientKey{}).(*client) }

func accept(ctx ssh.Context, conn net.Conn) net.Conn {
	ctx.SetValue(clientKey{}, &client{
		handshake: time.AfterFunc(handshakeLimit, func() { conn.Close() }),
		offered:   map[string]caller{},
	})
	return conn
}

// serverConfig leaves out what the library still takes for old peers' sake:
// SHA-1 and DSA.
func serverConfig(ctx ssh.Context) *gossh.ServerConfig {
	c := clientOf(ctx)
	return &gossh.ServerConfig{
		Config: gossh.Config{
			KeyExchanges: []string{
				gossh.KeyExchangeMLKEM768X25519, gossh.KeyExchangeCurve25519,
				gossh.KeyExchangeECDHP256, gossh.KeyExchangeECDHP384, gossh.KeyExchangeECDHP521,
				gossh.KeyExchangeDH16SHA512, gossh.KeyExchangeDH14SHA256,
			},
			Ciphers: gossh.SupportedAlgorithms().Ciphers,
			MACs: []string{
				gossh.HMACSHA256ETM, gossh.HMACSHA512ETM, gossh.HMACSHA256, gossh.HMACSHA512,
			},
		},
		MaxAuthTries:            maxAuthTries,
		PublicKeyAuthAlgorithms: gossh.SupportedAlgorithms().PublicKeyAuths,
		VerifiedPublicKeyCallback: func(_ gossh.ConnMetadata, key gossh.PublicKey, _ *gossh.Permissions, _ string) (*gossh.Permissions, error) {
			return c.verified(key)
		},
	}
}

// offer answers a client that asks whether a key would do. When the Platform cannot say, the
// answer is yes: whoever proves to hold the key is then told so and can do nothing else, which
// serves him better than "permission denied".
func (s *Server) offer(ctx ssh.Context, key ssh.PublicKey) bool {
	who := caller{key: strings.TrimSpace(string(gossh.MarshalAuthorizedKey(key)))}
	who.user, who.err = s.Platform.Authenticate(ctx, who.key)
	if code := paas.CodeOf(who.err); code == paas.NotFound || code == paas.Forbidden || code == paas.Unauthorized {
		return false
	}
	c := clientOf(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offered[string(key.Marshal())] = who
	return true
}

// verified names the caller once he has signed with a key; a client may have offered others before.
func (c *client) verified(key gossh.PublicKey) (*gossh.Permissions, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	who, ok := c.offered[string(key.Marshal())]
	if !ok {
		return nil, errors.New("key was not offered")
	}
	c.offered = nil
	c.handshake.Stop()
	return &gossh.Permissions{ExtraData: map[any]any{callerKey{}: who}}, nil
}
