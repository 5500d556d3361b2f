package agent

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/internal/guest"
)

// handshakeTimeout bounds what a client may keep open without having shown a
// certificate.
const handshakeTimeout = 30 * time.Second

// sshServer serves sessions in the image's root.
type sshServer struct {
	*launcher
	config *ssh.ServerConfig
	log    *slog.Logger
}

// newSSHServer checks the document's keys and touches nothing.
func newSSHServer(keys guest.SSH, l *launcher, log *slog.Logger) (*sshServer, error) {
	config, err := sshConfig(keys)
	if err != nil {
		return nil, err
	}
	return &sshServer{launcher: l, config: config, log: log}, nil
}

// sshConfig offers the host certificate and nothing else, and lets in who has
// a user certificate and nobody else.
func sshConfig(keys guest.SSH) (*ssh.ServerConfig, error) {
	authority, _, _, _, err := ssh.ParseAuthorizedKey([]byte(keys.UserCA))
	if err != nil {
		return nil, fmt.Errorf("user authority: %w", err)
	}
	host, err := hostSigner(keys)
	if err != nil {
		return nil, err
	}
	c := &ssh.ServerConfig{
		Config: ssh.Config{
			Ciphers:      ciphers(),
			KeyExchanges: []string{ssh.KeyExchangeCurve25519, ssh.KeyExchangeMLKEM768X25519},
		},
		ServerVersion: "SSH-2.0-banger",
		MaxAuthTries:  20, // a person's ssh offers all keys of its agent first
		PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			return &ssh.Permissions{}, checkUser(authority, c.User(), key)
		},
	}
	c.AddHostKey(host)
	return c, nil
}

func hostSigner(keys guest.SSH) (ssh.Signer, error) {
	key, err := ssh.ParsePrivateKey([]byte(keys.HostKey))
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(keys.HostCert))
	if err != nil {
		return nil, fmt.Errorf("host certificate: %w", err)
	}
	cert, ok := public.(*ssh.Certificate)
	if !ok || cert.CertType != ssh.HostCert {
		return nil, errors.New("host certificate: it is not one")
	}
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		return nil, fmt.Errorf("host certificate: %w", err)
	}
	return signer, nil
}

// checkUser is the whole of user authentication: a valid user certificate of
// our authority, for this user or for root, who may be anybody. A certificate
// that demands something (a critical option) is refused, since nothing here
// would honour it.
func checkUser(authority ssh.PublicKey, user string, key ssh.PublicKey) error {
	cert, ok := key.(*ssh.Certificate)
	if !ok || cert.CertType != ssh.UserCert {
		return errors.New("not a user certificate")
	}
	if !bytes.Equal(cert.SignatureKey.Marshal(), authority.Marshal()) {
		return errors.New("certificate of another authority")
	}
	principal := user
	if !slices.Contains(cert.ValidPrincipals, user) {
		principal = "root"
	}
	return new(ssh.CertChecker).CheckCert(principal, cert)
}

// serve accepts connections until the listener fails, which does not happen
// while the guest lives.
func (s *sshServer) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			s.log.Error("ssh port is closed", "err", err)
			return
		}
		go guard(s.log, func() { s.connection(conn) })
	}
}

func (s *sshServer) connection(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout)) // a dead connection fails below
	c, channels, requests, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		s.log.Info("ssh connection refused", "err", err)
		return
	}
	defer c.Close()
	_ = conn.SetDeadline(time.Time{})
	go ssh.DiscardRequests(requests)
	for ch := range channels {
		switch ch.ChannelType() {
		case "session":
			go guard(s.log, func() { s.session(ch, c.User()) })
		case "direct-tcpip":
			go guard(s.log, func() { s.forward(ch) })
		default:
			_ = ch.Reject(ssh.UnknownChannelType, "not supported") // fails with the connection
		}
	}
}
