package daemon

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"banger/api"
	"banger/internal/version"
)

// routes is the whole API. Who may use it is decided before, at the socket:
// the owner and root, nobody else.
func (d *Daemon) routes() http.Handler {
	mux := http.NewServeMux()
	h := humago.New(mux, apiConfig())

	get(h, "/v1/version", "Which daemon this is", d.getVersion)
	get(h, "/v1/doctor", "Check the host", d.getDoctor)
	post(h, "/v1/doctor/repair", "Mend what checks found, as they say under repair", http.StatusOK, d.repair)
	post(h, "/v1/ssh/certificates", "Get a certificate for SSH sessions into VMs", http.StatusOK, d.signCertificate)

	get(h, "/v1/vms", "List VMs", d.listVMs)
	get(h, "/v1/vms/{ref}", "Show a VM", d.getVM)
	post(h, "/v1/vms", "Create a VM and start it", http.StatusAccepted, d.createVM)
	post(h, "/v1/vms/{ref}/start", "Start a VM", http.StatusAccepted, d.startVM)
	post(h, "/v1/vms/{ref}/stop", "Stop a VM through its guest", http.StatusAccepted, d.stopVM)
	post(h, "/v1/vms/{ref}/kill", "Stop a VM at once", http.StatusAccepted, d.killVM)
	post(h, "/v1/vms/{ref}/restart", "Stop a VM through its guest and start it again", http.StatusAccepted, d.restartVM)
	post(h, "/v1/vms/{ref}/pause", "Halt a VM's CPUs; its memory stays", http.StatusAccepted, d.pauseVM)
	post(h, "/v1/vms/{ref}/resume", "Let a paused VM go on", http.StatusAccepted, d.resumeVM)
	post(h, "/v1/vms/prune", "Delete VMs that do not run", http.StatusAccepted, d.pruneVMs)
	register(h, http.MethodPatch, "/v1/vms/{ref}", "Change a VM's settings", http.StatusOK, d.changeVM)
	get(h, "/v1/vms/{ref}/health", "Ask the guest's agent how it is", d.getHealth)
	get(h, "/v1/vms/{ref}/ports", "List what listens in the guest", d.getPorts)
	huma.Register(h, operationDoc(http.MethodGet, "/v1/vms/{ref}/stats", "What a VM's VMM has taken so far; with watch, server-sent events", http.StatusOK), d.getStats)
	huma.Register(h, operationDoc(http.MethodGet, "/v1/vms/{ref}/logs", "The console of a VM, as text from the guest; the trailer "+problemTrailer+" tells of a failure on the way", http.StatusOK), d.getLogs)
	huma.Register(h, operationDoc(http.MethodGet, "/v1/events", "Changes of VMs, as server-sent events", http.StatusOK), d.getEvents)
	remove(h, "/v1/vms/{ref}", "Delete a VM and its disk", http.StatusAccepted, d.deleteVM)

	get(h, "/v1/images", "List images", d.listImages)
	post(h, "/v1/images", "Begin the import of an image", http.StatusAccepted, d.importImage)
	remove(h, "/v1/images/{name}", "Delete an image", http.StatusNoContent, d.deleteImage)
	get(h, "/v1/kernels", "List kernels", d.listKernels)
	post(h, "/v1/kernels", "Begin the import of a kernel", http.StatusAccepted, d.importKernel)
	remove(h, "/v1/kernels/{name}", "Delete a kernel", http.StatusNoContent, d.deleteKernel)

	get(h, "/v1/operations", "List operations", d.listOperations)
	get(h, "/v1/operations/{id}", "Show an operation", d.getOperation)
	remove(h, "/v1/operations/{id}", "Cancel an operation", http.StatusNoContent, d.cancelOperation)
	huma.Register(h, operationDoc(http.MethodGet, "/v1/operations/{id}/events",
		"Watch an operation: server-sent events, each a whole operation", http.StatusOK), d.watchOperation)

	// A connection that changes hands and a body without end are not for huma.
	mux.HandleFunc("POST /v1/vms/{ref}/dial", d.dial)
	mux.HandleFunc("POST /v1/vms/{ref}/lease", d.holdLease)
	mux.HandleFunc("PUT /v1/operations/{id}/input", d.putInput)
	describeByHand(h.OpenAPI())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, api.NotFound("there is nothing at %s %s", r.Method, r.URL.Path))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.VersionHeader, strconv.Itoa(api.APIVersion))
		mux.ServeHTTP(w, r)
	})
}

func apiConfig() huma.Config {
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		p := api.Problemf(status, api.CodeBadRequest, "%s", msg)
		for _, err := range errs {
			p.Detail += "; " + err.Error()
		}
		if status >= http.StatusInternalServerError {
			p.Code = api.CodeInternal
		}
		return p
	}
	c := huma.DefaultConfig("banger", version.Version)
	c.OpenAPIPath = "/v1/openapi"
	c.DocsPath, c.SchemasPath, c.CreateHooks = "", "", nil
	return c
}

// out is an answer with a body, none one without.
type (
	out[T any] struct{ Body T }
	none       struct{}
)

// RefInput names a VM. It is exported because huma fills only exported parts.
type RefInput struct {
	Ref string `path:"ref" doc:"name, id or unambiguous beginning of the id"`
}

type idInput struct {
	ID string `path:"id"`
}

type nameInput struct {
	Name string `path:"name"`
}

func get[I, T any](h huma.API, path, summary string, f func(context.Context, *I) (T, error)) {
	register(h, http.MethodGet, path, summary, http.StatusOK, f)
}

func post[I, T any](h huma.API, path, summary string, status int, f func(context.Context, *I) (T, error)) {
	register(h, http.MethodPost, path, summary, status, f)
}

func remove[I, T any](h huma.API, path, summary string, status int, f func(context.Context, *I) (T, error)) {
	register(h, http.MethodDelete, path, summary, status, f)
}

func register[I, T any](h huma.API, method, path, summary string, status int, f func(context.Context, *I) (T, error)) {
	if status == http.StatusNoContent {
		huma.Register(h, operationDoc(method, path, summary, status), func(ctx context.Context, in *I) (*none, error) {
			_, err := f(ctx, in)
			return nil, statusError(err)
		})
		return
	}
	huma.Register(h, operationDoc(method, path, summary, status), func(ctx context.Context, in *I) (*out[T], error) {
		v, err := f(ctx, in)
		if err != nil {
			return nil, statusError(err)
		}
		return &out[T]{v}, nil
	})
}

func operationDoc(method, path, summary string, status int) huma.Operation {
	id := strings.NewReplacer("/v1/", "", "/", "-", "{", "", "}", "").Replace(path)
	return huma.Operation{Method: method, Path: path, Summary: summary, DefaultStatus: status,
		OperationID: strings.ToLower(method) + "-" + id}
}

// describeByHand adds the routes huma does not serve.
func describeByHand(doc *huma.OpenAPI) {
	text := func(s string) map[string]*huma.Response { return map[string]*huma.Response{s: {Description: s}} }
	param := func(in, name string) *huma.Param {
		return &huma.Param{In: in, Name: name, Required: true, Schema: &huma.Schema{Type: "string"}}
	}
	doc.AddOperation(&huma.Operation{Method: http.MethodPost, Path: "/v1/vms/{ref}/dial", OperationID: "post-vms-ref-dial",
		Summary: "Upgrade to a raw stream to a vsock port of the guest",
		Description: fmt.Sprintf("Send `Upgrade: %s`. With `%s: 1` on a Unix socket the answer 101 is followed by one byte "+
			"that carries the connected descriptor (SCM_RIGHTS); the connection itself is then of no more use.", upgradeName, passFDHeader),
		Parameters: []*huma.Param{param("path", "ref"), param("query", "port")}, Responses: text("101")})
	doc.AddOperation(&huma.Operation{Method: http.MethodPost, Path: "/v1/vms/{ref}/lease", OperationID: "post-vms-ref-lease",
		Summary: "Hold the lease of an ephemeral VM",
		Description: "The answer 200 comes at once and does not end: the connection is the lease. When the last one of a VM breaks, " +
			"the VM is deleted after a short time in which another may be taken.",
		Parameters: []*huma.Param{param("path", "ref")}, Responses: text("200")})
	doc.AddOperation(&huma.Operation{Method: http.MethodPut, Path: "/v1/operations/{id}/input", OperationID: "put-operations-id-input",
		Summary: "The data of an import, of any length",
		Description: fmt.Sprintf("A local caller may send `Upgrade: %s` instead of data: after 101 it sends one byte that carries the "+
			"descriptor of a regular file (SCM_RIGHTS), and a second answer comes when the file is read.", fileUpgrade),
		Parameters: []*huma.Param{param("path", "id")}, Responses: text("204")})
}
