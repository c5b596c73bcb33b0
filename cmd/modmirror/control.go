package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"modmirror/replicate"
	"modmirror/replicate/peer"
)

// control is how commands speak with a running node: at its internal port, with the cluster's secret.
type control struct {
	peer      string
	dataDir   string
	tokenFile string
	tls       tlsFiles
}

func controlFlags(cmd *cobra.Command) *control {
	c := &control{}
	fs := cmd.Flags()
	fs.StringVar(&c.peer, "peer", alonePeerListen, "speak with the node whose internal port has this `address`")
	fs.StringVar(&c.dataDir, "data-dir", defaultDataDir, "take the secret of the node in this `directory`, unless another flag says where it is")
	fs.StringVar(&c.tokenFile, "cluster-token-file", "", "the `file` with the cluster's secret")
	fs.StringVar(&c.tls.CA, "tls-ca", "", "the `file` with the authorities that nodes are trusted by")
	fs.StringVar(&c.tls.Cert, "tls-cert", "", "the `file` with a certificate")
	fs.StringVar(&c.tls.Key, "tls-key", "", "the `file` with its key")
	return c
}

// stopped opens the catalog in the data directory, unless --peer says which node is meant, or there is no mirror's data and none was
// asked for. runs says that a node runs on the directory: then it cannot be opened.
func (c *control) stopped(cmd *cobra.Command) (cat *replicate.Catalog, runs bool, err error) {
	cat, err = openCatalog(c.dataDir)
	if cmd.Flags().Changed("peer") {
		if cat != nil {
			return nil, false, cat.Close()
		}
		return nil, errors.Is(err, replicate.ErrLocked), nil
	}
	switch {
	case errors.Is(err, replicate.ErrLocked):
		return nil, true, nil
	case (errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoCatalog)) && !cmd.Flags().Changed("data-dir"):
		return nil, false, nil
	}
	return cat, false, err
}

// credentials are what the node is shown.
func (c *control) credentials(id string) (peer.Credentials, error) {
	if !c.tls.isZero() {
		if c.tls.CA == "" || c.tls.Cert == "" || c.tls.Key == "" {
			return nil, usageError("--tls-ca, --tls-cert and --tls-key belong together")
		}
		return peer.FromFiles(c.tls.CA, c.tls.Cert, c.tls.Key, nil)
	}
	file := c.tokenFile
	if file == "" {
		file = filepath.Join(c.dataDir, tokenName)
	}
	token, err := peer.ReadToken(file)
	if errors.Is(err, fs.ErrNotExist) && c.tokenFile == "" {
		return nil, usageError("there is no cluster secret in %s: say where it is with --cluster-token-file, or where the node's data is with --data-dir", c.dataDir)
	}
	if err != nil {
		return nil, err
	}
	return peer.FromToken(token, id), nil
}

// call asks the node.
func (c *control) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	k, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	return k.call(ctx, method, path, body)
}

// conn is a command that speaks with nodes.
type conn struct {
	*peer.Link
	node peer.Member // the one that was dialed
}

// dial finds the node, which must have a cluster.
func (c *control) dial(ctx context.Context) (*conn, error) {
	if _, _, err := net.SplitHostPort(c.peer); err != nil {
		c.peer = net.JoinHostPort(strings.Trim(c.peer, "[]"), peer.DefaultPort)
	}
	id := "cli-" + rand.Text()
	cred, err := c.credentials(id)
	if err != nil {
		return nil, err
	}
	// Who speaks with nodes listens like one, on a port that nobody is told of, as long as the command runs.
	var cluster atomic.Value // string; known after the first answer
	cluster.Store("")
	self := func() peer.Hello {
		return peer.Hello{Cluster: cluster.Load().(string), Node: id, Boot: id, Name: "command", Version: buildVersion()}
	}
	link, err := peer.Listen(peer.Config{Listen: "localhost:0", Credentials: cred, Self: self})
	if err != nil {
		return nil, err
	}
	probing, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	node, err := link.Probe(probing, c.peer)
	if err == nil && node.Cluster == "" {
		link.Close()
		return nil, fmt.Errorf("the node at %s has no cluster yet: it is still looking for the others", c.peer)
	}
	if err != nil {
		link.Close()
		return nil, fmt.Errorf("no node answers at %s (see --peer): %w", c.peer, err)
	}
	cluster.Store(node.Cluster)
	m := node.Member()
	m.Address = c.peer
	return &conn{link, m}, nil
}

// call asks the node that was dialed.
func (k *conn) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	resp, err := k.Do(ctx, peer.Request{Node: k.node.ID, Addr: k.node.Address, Method: method, Path: path, Body: bytes.NewReader(body), Size: int64(len(body))})
	if err != nil {
		return nil, fmt.Errorf("the node at %s: %w", k.node.Address, err)
	}
	b, _, err := answerOf(resp)
	return b, err
}

func clusterTokenCommand() *cobra.Command {
	var fresh bool
	var dataDir, file string
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Print the secret that other nodes join with",
		Long: `Token prints the secret of the node in --data-dir, or with --new a new one. Whoever has it can be a node of the cluster, and
can administrate it. Give it to other nodes as a file (--cluster-token-file) that only their user can read.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&fresh, "new", false, "make a new secret, for a new cluster")
	cmd.Flags().StringVar(&dataDir, "data-dir", defaultDataDir, "the node's `directory`")
	cmd.Flags().StringVar(&file, "cluster-token-file", "", "check and print the secret in this `file`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := loadSettings(cmd); err != nil {
			return err
		}
		token := peer.NewToken()
		if !fresh {
			if file == "" {
				file = filepath.Join(dataDir, tokenName)
			}
			var err error
			if token, err = peer.ReadToken(file); err != nil {
				return fmt.Errorf("%w; a node that was started with --cluster-token-file has its secret there, and --new makes one", err)
			}
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), token)
		return err
	}
	return cmd
}
