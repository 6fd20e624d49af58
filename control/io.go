package control

import (
	"fmt"
	"net/http"
)

// Answers of a probe.
const (
	AnswerYes     = "yes"
	AnswerNo      = "no"
	AnswerUnknown = "unknown" // could not be tried
)

// IOReport is what the kernel and the container allow a process to do: what
// cloud-cup --check-io prints, and a part of the answer to GET /v1/io.
type IOReport struct {
	Facts    []IOFact    `json:"facts"`
	Engines  []IOFinding `json:"engines"`  // in order of preference
	Features []IOFinding `json:"features"` // of io_uring, each tried on its own
	Advice   []string    `json:"advice"`   // what to change; empty if all is well
}

// IOFact is something about the kernel or this process.
type IOFact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// IOFinding is the answer of one probe.
type IOFinding struct {
	Name   string `json:"name"`
	Answer string `json:"answer"`
	Since  string `json:"since,omitempty"`  // the first Linux that has it
	Errno  string `json:"errno,omitempty"`  // of a no: "EPERM"
	Detail string `json:"detail,omitempty"` // of a yes what is used; of a no the likely cause
}

// IOStatus is the answer to GET /v1/io: what the master chose, what its workers
// use, and what can be had now where they run.
type IOStatus struct {
	Engine  EngineStatus   `json:"engine"`
	Workers []WorkerStatus `json:"workers"`
	Report  *IOReport      `json:"report"`
}

// Lines are the report for a person.
func (r *IOReport) Lines() []string {
	var lines []string
	for _, f := range r.Facts {
		lines = append(lines, fmt.Sprintf("%-10s %s", f.Name, f.Value))
	}
	lines = append(lines, "")
	for _, f := range r.Engines {
		lines = append(lines, fmt.Sprintf("%-6s %s%s", f.Name, f.Answer, after(": ", f.Detail)))
	}
	lines = append(lines, "", "io_uring, each tried on its own:")
	for _, f := range r.Features {
		lines = append(lines, fmt.Sprintf("  %-8s %s (Linux %s)%s", f.Answer, f.Name, f.Since, after(": ", f.why())))
	}
	if len(r.Advice) > 0 {
		lines = append(lines, "", "what to change:")
	}
	for _, a := range r.Advice {
		lines = append(lines, "- "+a)
	}
	return lines
}

// why is errno and cause of a no.
func (f *IOFinding) why() string {
	if f.Errno == "" {
		return f.Detail
	}
	return f.Errno + after(", ", f.Detail)
}

func after(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

// IO asks what the workers use, and what can be had.
func (c *Client) IO() (*IOStatus, error) {
	s := new(IOStatus)
	return s, c.do(http.MethodGet, "/v1/io", nil, s)
}
