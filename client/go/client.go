package lightningstore

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	defaultAddress  = "127.0.0.1:4747"
	addressVariable = "LIGHTNINGSTORE_ADDRESS"
	tokenVariable   = "LIGHTNINGSTORE_TOKEN"
	spaceVariable   = "LIGHTNINGSTORE_NAMESPACE"

	mib = 1 << 20
	// The server's limit, plus the overhead of a message of that size.
	maxMessageBytes = 64*mib + mib

	keepaliveTime    = 20 * time.Second
	keepaliveTimeout = 10 * time.Second
)

// gRPC retries unanswered calls. Every method can be retried safely, because the client adds a request_id to those that
// are not idempotent. A server that is shutting down answers new calls with
// CANCELLED.
const serviceConfig = `{"methodConfig": [{
  "name": [{"service": "lightningstore.v1.LightningStoreService"},
           {"service": "lightningstore.v1.NamespaceService"}],
  "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s",
                  "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]}
}]}`

var namespaceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// Options configure a connection. The zero value connects without encryption to LIGHTNINGSTORE_ADDRESS, else
// to 127.0.0.1:4747.
type Options struct {
	// TLS has the CA certificates that verify the server and the client's certificate; see [TLSFromFiles]. Nil:
	// no encryption, unless the address begins with "https://".
	TLS *tls.Config
	// Token is sent with every call as "authorization: Bearer ...". Empty: LIGHTNINGSTORE_TOKEN, if set.
	Token string
	// Namespace is the namespace of every call: 1 to 63 of a-z 0-9 - _ . that begin and end with a letter or a
	// digit. Empty: LIGHTNINGSTORE_NAMESPACE; if that is not set, calls name no namespace and belong to the
	// server's "default".
	Namespace string
	// AllowInsecureToken allows sending the token over an unencrypted connection, where others can read it.
	AllowInsecureToken bool
	// Logger receives warnings. Nil: slog.Default().
	Logger *slog.Logger
}

// Client is a connection to a server. It is safe for concurrent use by multiple goroutines. It connects with
// the first call and reconnects when the connection breaks. Calls whose response was lost are retried, up to
// 5 times within a few seconds. Every write gets a request_id, by which the server recognises a repeat.
type Client struct {
	conn       *grpc.ClientConn
	service    pb.LightningStoreServiceClient
	namespaces pb.NamespaceServiceClient
	log        *slog.Logger
	contact    *contact
	owner      *owner
}

// New returns a client of the server at an address: "host:port", "https://host:port" or "unix:path". Empty:
// LIGHTNINGSTORE_ADDRESS, else 127.0.0.1:4747. It returns an error for an invalid address or namespace, and for
// a token that would be sent over an unencrypted connection. options may be nil.
func New(address string, options *Options) (*Client, error) {
	if options == nil {
		options = &Options{}
	}
	target := cmp.Or(address, os.Getenv(addressVariable), defaultAddress)
	transport, token := options.TLS, cmp.Or(options.Token, os.Getenv(tokenVariable))
	if rest, found := strings.CutPrefix(target, "https://"); found {
		target = strings.TrimSuffix(rest, "/")
		if transport == nil {
			transport = &tls.Config{MinVersion: tls.VersionTLS12}
		}
	}
	if scheme, _, found := strings.Cut(target, "://"); found && scheme != "dns" && scheme != "unix" {
		return nil, fmt.Errorf("lightningstore: the address must be like %s or https://store:4747, not %q",
			defaultAddress, target)
	}
	if token != "" && transport == nil && !options.AllowInsecureToken {
		return nil, fmt.Errorf("lightningstore: the token would be sent to %s unencrypted: use TLS, or set "+
			"AllowInsecureToken", target)
	}
	namespace := cmp.Or(options.Namespace, os.Getenv(spaceVariable))
	if namespace != "" && !namespaceName.MatchString(namespace) {
		return nil, fmt.Errorf("lightningstore: the namespace must be 1 to 63 of a-z 0-9 - _ . and begin and end "+
			"with a letter or a digit, not %q", namespace)
	}
	logger := options.Logger
	if logger == nil {
		logger = slog.Default()
	}
	client := &Client{log: logger}
	client.contact = newContact(target, logger, func() bool { return client.conn.GetState() == connectivity.Ready })
	dialing := dialOptions(transport, token)
	client.owner = &owner{dial: func(address string) (*grpc.ClientConn, error) {
		return grpc.NewClient(address, dialing...)
	}}
	calls := &interceptor{contact: client.contact, owner: client.owner, namespace: namespace}
	conn, err := grpc.NewClient(target, append(slices.Clone(dialing),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithUnaryInterceptor(calls.unary), grpc.WithStreamInterceptor(calls.stream))...)
	if err != nil {
		return nil, fmt.Errorf("lightningstore: %w", err)
	}
	client.conn, client.service = conn, pb.NewLightningStoreServiceClient(conn)
	client.namespaces = pb.NewNamespaceServiceClient(conn)
	return client, nil
}

// dialOptions returns the options of every connection.
func dialOptions(transport *tls.Config, token string) []grpc.DialOption {
	security := insecure.NewCredentials()
	if transport != nil {
		security = credentials.NewTLS(transport)
	}
	reconnect := backoff.DefaultConfig
	reconnect.BaseDelay, reconnect.MaxDelay = firstDelay, 2*time.Second
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(security),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes),
			grpc.MaxRetryRPCBufferSize(maxMessageBytes), // else gRPC repeats no request above 256 KiB
			grpc.ForceCodecV2(newTextCodec())),
		// Without pings, a lost peer would never be noticed.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		// Reconnect to a restarted server within seconds; gRPC's default is up to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
		// A proxy from the environment is meant for web traffic, not for a store on this host.
		grpc.WithNoProxy(),
		grpc.WithUserAgent("lightningstore-go"),
	}
	if token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer{token: token, secure: transport != nil}))
	}
	return options
}

// Service returns the generated stub, which has every call of the contract. It retries calls, adds request ids and returns
// errors (*Error) as the methods of Client do.
func (c *Client) Service() pb.LightningStoreServiceClient { return c.service }

// Conn returns the connection, for stubs of other services of the same server.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// Close closes the connection. Calls in progress fail.
func (c *Client) Close() error {
	c.contact.end()
	c.owner.close()
	return c.conn.Close()
}

// TLSFromFiles returns a TLS configuration from PEM files. ca holds the CA certificates that verify the
// server; empty: those of the system. certificate and key are the client's own, for mutual TLS; both may be
// empty.
func TLSFromFiles(ca, certificate, key string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("lightningstore: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("lightningstore: %s contains no PEM certificate", ca)
		}
	}
	if (certificate == "") != (key == "") {
		return nil, errors.New("lightningstore: a client certificate requires its key, and the key a certificate")
	}
	if certificate != "" {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return nil, fmt.Errorf("lightningstore: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// bearer adds a token to every call.
type bearer struct {
	token  string
	secure bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.secure }
