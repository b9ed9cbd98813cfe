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
	"strings"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	defaultAddress  = "127.0.0.1:4747"
	addressVariable = "LIGHTNINGSTORE_ADDRESS"
	tokenVariable   = "LIGHTNINGSTORE_TOKEN"

	mib = 1 << 20
	// The server's limit, and what frames a message of that size.
	maxMessageBytes = 64*mib + mib

	keepaliveTime    = 20 * time.Second
	keepaliveTimeout = 10 * time.Second
)

// gRPC repeats what the server did not answer. That is harmless for every method: those that are not
// idempotent get a request_id from the client. CANCELLED is what a server says to a call that reaches it as it
// goes down.
const serviceConfig = `{"methodConfig": [{
  "name": [{"service": "lightningstore.v1.LightningStoreService"}],
  "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s",
                  "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]}
}]}`

// Options say how to connect. The zero value connects without encryption to LIGHTNINGSTORE_ADDRESS, else to
// 127.0.0.1:4747.
type Options struct {
	// TLS to speak, with the server's authorities and the client's certificate; see [TLSFromFiles]. Nil:
	// plain text, unless the address begins with "https://".
	TLS *tls.Config
	// Token is sent with every call as "authorization: Bearer ...". Empty: LIGHTNINGSTORE_TOKEN, if set.
	Token string
	// AllowInsecureToken lets the token travel over plain text, where everybody on the way can read it.
	AllowInsecureToken bool
	// Logger gets what is worth a warning. Nil: slog.Default().
	Logger *slog.Logger
}

// Client is a connection to a server. It may be used by many goroutines; it connects with the first call, and
// again whenever the connection breaks. Calls whose answer was lost are made again, up to 5 times within some
// seconds; every write gets a request_id, by which the server knows a repeat.
type Client struct {
	conn    *grpc.ClientConn
	service pb.LightningStoreServiceClient
	log     *slog.Logger
}

// New returns a client of the server at an address: "host:port", "https://host:port" or "unix:path"; empty:
// LIGHTNINGSTORE_ADDRESS, else 127.0.0.1:4747. It fails for an address that is none, and for a token that
// would go over plain text. options may be nil.
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
		return nil, fmt.Errorf("lightningstore: an address like %s or https://store:4747 is wanted, not %q",
			defaultAddress, target)
	}
	if token != "" && transport == nil && !options.AllowInsecureToken {
		return nil, fmt.Errorf("lightningstore: the token would go to %s in plain text: use TLS, or set "+
			"AllowInsecureToken", target)
	}
	conn, err := grpc.NewClient(target, dialOptions(transport, token)...)
	if err != nil {
		return nil, fmt.Errorf("lightningstore: %w", err)
	}
	logger := options.Logger
	if logger == nil {
		logger = slog.Default()
	}
	return &Client{conn: conn, service: pb.NewLightningStoreServiceClient(conn), log: logger}, nil
}

func dialOptions(transport *tls.Config, token string) []grpc.DialOption {
	security := insecure.NewCredentials()
	if transport != nil {
		security = credentials.NewTLS(transport)
	}
	reconnect := backoff.DefaultConfig
	reconnect.BaseDelay, reconnect.MaxDelay = firstDelay, 2*time.Second
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(security),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes),
			grpc.MaxRetryRPCBufferSize(maxMessageBytes), // else gRPC repeats no request above 256 KiB
			grpc.ForceCodecV2(newTextCodec())),
		// Without pings a peer that vanished goes unnoticed for ever.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		// A server that restarts is found again within moments, not after gRPC's two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
		// A proxy of the environment is meant for the web; a store on this host is not behind it.
		grpc.WithNoProxy(),
		grpc.WithUserAgent("lightningstore-go"),
		grpc.WithUnaryInterceptor(interceptUnary),
		grpc.WithStreamInterceptor(interceptStream),
	}
	if token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer{token: token, secure: transport != nil}))
	}
	return options
}

// Service returns the generated stubs, for every call of the contract. They take part in what the client
// promises: retries, request ids, errors that are an *Error.
func (c *Client) Service() pb.LightningStoreServiceClient { return c.service }

// Conn returns the connection, for stubs of other services of the same server.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// Close ends the connection. Calls that are open fail.
func (c *Client) Close() error { return c.conn.Close() }

// TLSFromFiles returns a configuration of TLS from files in PEM. ca: the authorities that may have signed the
// server's certificate; empty: those of the system. certificate and key: what the client shows, for mutual
// TLS; both may be empty.
func TLSFromFiles(ca, certificate, key string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("lightningstore: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("lightningstore: %s holds no certificate in PEM", ca)
		}
	}
	if (certificate == "") != (key == "") {
		return nil, errors.New("lightningstore: a client certificate and its key go together")
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

// bearer shows a token with every call.
type bearer struct {
	token  string
	secure bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.secure }
