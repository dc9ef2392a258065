package main

import (
	"context"
	"net"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
	"k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	"k8s.io/utils/ptr"
)

// What kube-proxy calls the machine that it runs on.
const gateway = "gateway"

// newProxyCommand is kube-proxy for the gateway of all nodes, which is no node itself. The stock command looks for a Node
// of its host's name first, and gives up on it only after half a minute.
func newProxyCommand() *cobra.Command {
	command := &cobra.Command{Use: "proxy", SilenceUsage: true}
	kubeconfig := command.Flags().String("kubeconfig", "", "file that says how to reach the API server")
	address := command.Flags().IP("address", nil, "the gateway's address, on which NodePorts are served")
	command.RunE = func(command *cobra.Command, _ []string) error {
		access, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(access)
		if err != nil {
			return err
		}
		return serveProxy(command.Context(), client, *address)
	}
	return command
}

func serveProxy(ctx context.Context, client kubernetes.Interface, address net.IP) error {
	settings := &config.KubeProxyConfiguration{
		Mode: config.ProxyModeNFTables,
		// answers must come back through the gateway, also where client and endpoint share a network
		Linux:             config.KubeProxyLinuxConfiguration{MasqueradeAll: true},
		NFTables:          config.KubeProxyNFTablesConfiguration{MasqueradeBit: ptr.To[int32](14)},
		NodePortAddresses: []string{address.String() + "/32"},
		SyncPeriod:        metav1.Duration{Duration: 30 * time.Second},
		MinSyncPeriod:     metav1.Duration{Duration: time.Second},
		ConfigSyncPeriod:  metav1.Duration{Duration: 15 * time.Minute},
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	recorder := broadcaster.NewRecorder(scheme.Scheme, "proxy")
	proxier, err := nftables.NewProxier(ctx, settings, v1.IPv4Protocol, proxyutil.NewNoOpLocalDetector(), gateway, address,
		recorder, nil, false)
	if err != nil {
		return err
	}
	server := &app.ProxyServer{
		Config:   settings,
		Client:   client,
		Proxier:  proxier,
		Recorder: recorder,
		NodeRef:  &v1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: gateway},
	}
	return server.Run(ctx)
}
