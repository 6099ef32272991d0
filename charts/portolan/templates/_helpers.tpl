{{/*
Names are fixed, not derived from the release: a cluster has one Portolan, because its CRDs, hosts
and node ports are the cluster's.
*/}}

{{/* Labels of every object. Argument: dict "root" $ "component" "controller"|"gateway"|"". */}}
{{- define "portolan.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: portolan
{{- with .component }}
{{ include "portolan.selector" . }}
{{- end }}
{{- end }}

{{/* Labels that select the Pods of a component; they never change. Argument: the component. */}}
{{- define "portolan.selector" -}}
app.kubernetes.io/name: portolan
app.kubernetes.io/component: {{ . }}
{{- end }}

{{/* Label of a gateway's Pod to which visitors are sent, and what its Services select. */}}
{{- define "portolan.visitors" -}}
portolan.dev/visitors: "yes"
{{- end }}

{{- define "portolan.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* What the restricted Pod Security level asks for, and no writable root. */}}
{{- define "portolan.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "portolan.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/*
Liveness asks the process alone: restarting it would not bring an API server back.
Readiness notices a process that was killed sooner than the kubelet, which looks at its containers
once a second and only then tells: a refused connection is proof at once, and a slow answer has time.
*/}}
{{- define "portolan.probes" -}}
livenessProbe:
  httpGet: { path: /healthz, port: admin }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, port: admin }
  periodSeconds: 1
  timeoutSeconds: 5
  failureThreshold: 1
{{- end }}

{{/* Where a Pod may run: on Linux. Argument: the values of the component. */}}
{{- define "portolan.placement" -}}
nodeSelector:
  {{- merge (dict "kubernetes.io/os" "linux") (.nodeSelector | default dict) | toYaml | nindent 2 }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- /*
Replicas over nodes and zones, as far as possible. Argument: a dict of the component and its values.
A cluster whose nodes are in no zone is spread over nodes all the same, so zones are no constraint of
their own: the scheduler rates only nodes that have the labels of all of them.
*/}}
{{- define "portolan.spread" -}}
topologySpreadConstraints:
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels:
      {{- include "portolan.selector" .component | nindent 6 }}
{{- if not .values.affinity }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: topology.kubernetes.io/zone
        matchLabelKeys: [pod-template-hash]
        labelSelector:
          matchLabels:
            {{- include "portolan.selector" .component | nindent 12 }}
{{- end }}
{{- end }}

{{/* The rules of a Role, from files/permissions.yaml. Argument: a list of its rules. */}}
{{- define "portolan.rules" -}}
{{- range . }}
# {{ .why }}
- apiGroups: {{ toJson .groups }}
  resources: {{ toJson .resources }}
  {{- with .names }}
  resourceNames: {{ toJson . }}
  {{- end }}
  verbs: {{ toJson .verbs }}
{{- end }}
{{- end }}

{{/* The namespace of the node agents, which the Pod Security level of the others forbids. */}}
{{- define "portolan.nodeNamespace" -}}
{{ .Release.Namespace }}-node
{{- end }}

{{- define "portolan.nodeImage" -}}
{{- with .Values.node.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ $.Values.image.tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Where an agent answers /metrics and probes. The kubelet puts the node's address in. */}}
{{- define "portolan.nodeAdmin" -}}
{{- with .Values.node.admin -}}
{{ ternary "$(PORTOLAN_HOST_IP)" "127.0.0.1" (eq .listen "Node") }}:{{ .port }}
{{- end -}}
{{- end }}

{{/* The namespace of a component's Pods. Argument: dict "root" $ "component" ... */}}
{{- define "portolan.namespace" -}}
{{- if eq .component "node" -}}
{{ include "portolan.nodeNamespace" .root }}
{{- else -}}
{{ .root.Release.Namespace }}
{{- end -}}
{{- end }}

{{- /*
The namespaces of gateway.tls.namespaces that the cluster does not have, by commas: a Role in one of
them would fail the whole release, and it is the team that deletes its namespace. Without a cluster
(helm template) none counts as missing; every cluster has kube-system.
*/}}
{{- define "portolan.missingNamespaces" -}}
{{- $missing := list }}
{{- if and .Values.gateway.tls.namespaces (lookup "v1" "Namespace" "" "kube-system") }}
{{- /* That of the release may be made after this is rendered. */}}
{{- range $namespace := omit .Values.gateway.tls.namespaces .Release.Namespace | keys | sortAlpha }}
{{- $found := lookup "v1" "Namespace" "" $namespace }}
{{- if or (not $found) (dig "metadata" "deletionTimestamp" "" $found) }}
{{- $missing = append $missing $namespace }}
{{- end }}
{{- end }}
{{- end }}
{{- join "," $missing }}
{{- end }}
