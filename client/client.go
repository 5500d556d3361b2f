// Package client is the Go client of bangerd. It needs no configuration:
//
//	c, err := client.New("")            // the daemon of this host
//	c, err := client.New("ssh://lab")   // the daemon of another one, through the user's OpenSSH
//
// Every change that takes time answers with an operation at once; Watch follows it to its end.
// An error that came from the daemon, or that a person can do something about,
// is an *api.Problem with a code and often a hint.
package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"banger/api"
	"banger/internal/jsonhttp"
	"banger/internal/paths"
)

// base names no real host: the dialer decides where a request goes.
const base = "http://bangerd"

// Client talks to one bangerd. It is safe for concurrent use.
type Client struct {
	host string
	dial jsonhttp.Dialer
	http *http.Client
}

// New returns a client of the daemon at host: "" is this host's, unix:///PATH
// a socket, ssh://[USER@]HOST[:PORT] another host's. Nothing is dialled yet.
func New(host string) (*Client, error) {
	if host == "" {
		host = "unix://" + paths.DaemonSocket
	}
	u, err := url.Parse(host)
	if err != nil {
		return nil, badHost(host)
	}
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		return newClient(host, unixDialer(u.Path)), nil
	case u.Scheme == "ssh" && u.Hostname() != "" && (u.Path == "" || u.Path == "/"):
		destination := u.Hostname()
		if u.User != nil {
			if _, set := u.User.Password(); set {
				return nil, badHost(host).WithHint("a password does not belong in an address; use a key")
			}
			destination = u.User.Username() + "@" + destination
		}
		if strings.HasPrefix(destination, "-") {
			return nil, badHost(host) // ssh would take it for an option
		}
		// In our process group: ssh may have to ask for a passphrase.
		return newClient(host, commandDialer(host, sshArgv(destination, u.Port()), false)), nil
	}
	return nil, badHost(host)
}

// NewCommand returns a client for each of whose connections argv is started:
// it joins its stdin and stdout to the daemon, as ssh HOST banger dial-stdio
// does. host is what people call the place.
func NewCommand(host string, argv ...string) *Client {
	return newClient(host, commandDialer(host, argv, true))
}

func badHost(host string) *api.Problem {
	return api.BadRequest("cannot use %q as a host", host).
		WithHint("a host is unix:///PATH/OF/SOCKET or ssh://[USER@]HOST[:PORT]; the command also takes local and machine[:NAME]")
}

func newClient(host string, dial jsonhttp.Dialer) *Client {
	c := &Client{host: host, dial: dial, http: jsonhttp.NewHTTPClient(dial)}
	c.http.Transport = sameAPI{c.http.Transport}
	return c
}

// Host says where the client's daemon is, for a person.
func (c *Client) Host() string { return c.host }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// sameAPI refuses answers of a daemon that speaks another API: guessing on
// would do something else than was asked. GET /v1/version is exempt.
type sameAPI struct{ next http.RoundTripper }

func (t sameAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err != nil || r.URL.Path == "/v1/version" {
		return resp, err
	}
	if err := checkAPI(resp.Header); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

func (t sameAPI) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

func checkAPI(h http.Header) error {
	v := h.Get(api.VersionHeader)
	if v == "" {
		return nil
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return api.Internal("cannot understand bangerd: %s is %q", api.VersionHeader, v)
	}
	return apiMismatch(n)
}

// SameAPI refuses a daemon that speaks another API than this client.
func (c *Client) SameAPI(v api.Version) error { return apiMismatch(v.API) }

// apiMismatch says which side is older, or nil.
func apiMismatch(daemon int) error {
	p := api.Problemf(http.StatusConflict, "api_mismatch", "cannot work with bangerd: it speaks API %d and this banger API %d", daemon, api.APIVersion)
	switch {
	case daemon < api.APIVersion:
		p.Detail += "; bangerd is older"
		return p.WithHint("update the daemon: sudo banger system install, or restart it if that was done: sudo systemctl restart bangerd")
	case daemon > api.APIVersion:
		p.Detail += "; banger is older"
		return p.WithHint("update banger to the version of the daemon (see banger version)")
	}
	return nil
}

// call makes one request. A daemon that does not know the route, or does not
// understand the request, may just be of another age: then that is the answer.
func call[Out any](ctx context.Context, c *Client, method, path string, in any) (Out, error) {
	var out Out
	err := jsonhttp.Call(ctx, c.http, method, base+path, in, &out)
	if err == nil {
		return out, nil
	}
	return out, c.explain(ctx, err)
}

func (c *Client) explain(ctx context.Context, err error) error {
	p, ok := errors.AsType[*api.Problem](err)
	if !ok {
		return fmt.Errorf("cannot talk to bangerd at %s: %w", c.host, unwrapURL(err))
	}
	strange := p.Code == api.CodeInternal && (p.Status == http.StatusNotFound || p.Status == http.StatusMethodNotAllowed)
	if strange || p.Status == http.StatusUnprocessableEntity {
		var v api.Version
		if jsonhttp.Call(ctx, c.http, http.MethodGet, base+"/v1/version", nil, &v) == nil {
			if mismatch := apiMismatch(v.API); mismatch != nil {
				return mismatch
			}
		}
	}
	return p
}

// unwrapURL drops `Get "http://bangerd/…":`, an address nobody typed.
func unwrapURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// DialDaemon opens a connection to the daemon itself, as every call does.
func (c *Client) DialDaemon(ctx context.Context) (net.Conn, error) { return c.dial(ctx) }
