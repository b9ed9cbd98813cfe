package lightningstore

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

// writeCertificate writes a certificate that signs itself, for both sides, and its key.
func writeCertificate(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	certificate, key = filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	for path, block := range map[string]*pem.Block{
		certificate: {Type: "CERTIFICATE", Bytes: signed}, key: {Type: "PRIVATE KEY", Bytes: encoded}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

func TestMutualTLSAndToken(t *testing.T) {
	certificate, key := writeCertificate(t)
	config, err := TLSFromFiles(certificate, certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	ofServer := &tls.Config{Certificates: config.Certificates, ClientCAs: config.RootCAs,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	shown := make(chan []string, 1)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(ofServer)), grpc.UnaryInterceptor(
		func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			shown <- metadata.ValueFromIncomingContext(ctx, "authorization")
			return handler(ctx, request)
		}))
	pb.RegisterLightningStoreServiceServer(server, &scripted{})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	client, err := New(listener.Addr().String(), &Options{TLS: config, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := client.Service().Heartbeat(ctx, &pb.HeartbeatRequest{WorkerId: "w"}); err != nil {
		t.Fatal(err)
	}
	if got := next(t, shown, "the call"); len(got) != 1 || got[0] != "Bearer secret" {
		t.Fatal(got)
	}
	stranger := connect(t, listener.Addr().String())
	if _, err := stranger.Service().Heartbeat(ctx, &pb.HeartbeatRequest{WorkerId: "w"}); err == nil {
		t.Fatal("plain text was taken")
	}
}

func TestFilesThatAreNoCertificates(t *testing.T) {
	certificate, key := writeCertificate(t)
	wrong := [][3]string{{key, "", ""}, {"", certificate, ""}, {"", key, certificate}, {"missing", "", ""}}
	for _, files := range wrong {
		if _, err := TLSFromFiles(files[0], files[1], files[2]); err == nil {
			t.Fatal(files)
		}
	}
}
