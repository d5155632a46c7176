{{- define "zt.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "zt.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := include "zt.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "zt.selectorLabels" -}}
app.kubernetes.io/name: {{ include "zt.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: node
{{- end }}

{{- define "zt.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "zt.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "zt.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "zt.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "zt.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{- /* The ConfigMap that holds policy.yaml. */ -}}
{{- define "zt.policyConfigMap" -}}
{{- if .Values.policy.text -}}
{{ include "zt.fullname" . }}-policy-text
{{- else -}}
{{ .Values.policy.configMap }}
{{- end }}
{{- end }}

{{- /* A value that only `zt-daemon cluster add` can know. */ -}}
{{- define "zt.required" -}}
{{- $value := index .root.Values .name }}
{{- if not $value }}
{{- fail (printf "%s is missing: `zt-daemon cluster add NAME --context CONTEXT` prints the whole `helm install` line, with --set %s=…" .name .name) }}
{{- end }}
{{- $value }}
{{- end }}

{{- define "zt.nodeConfig" -}}
network: {{ include "zt.required" (dict "root" . "name" "network") }}
cluster: {{ include "zt.required" (dict "root" . "name" "cluster") | quote }}
relay: {{ include "zt.required" (dict "root" . "name" "relay") | quote }}
upstream: {{ .Values.upstream | quote }}
kubernetes:
  policyConfigMap: {{ include "zt.policyConfigMap" . }}
  accessGrants: {{ .Values.accessGrant.enabled }}
{{- end }}

{{- /* Nine tenths of the memory limit in bytes; nothing without a limit. */ -}}
{{- define "zt.goMemLimit" -}}
{{- $limit := dig "limits" "memory" "" (.Values.resources | default dict) | toString }}
{{- if $limit }}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 }}
{{- $unit := regexFind "[A-Za-z]*$" $limit }}
{{- if not (hasKey $units $unit) }}
{{- fail (printf "resources.limits.memory %q: write it in Mi or Gi, for example 128Mi" $limit) }}
{{- end }}
{{- mulf (trimSuffix $unit $limit | float64) (index $units $unit) 0.9 | int64 }}
{{- end }}
{{- end }}

{{- /* The pod, the same in both modes. */ -}}
{{- define "zt.podTemplate" -}}
metadata:
  annotations:
    checksum/node: {{ include "zt.nodeConfig" . | sha256sum | trunc 16 }}
    {{- with .Values.clusterKeyHash }}
    access.zt-daemon.io/cluster-key: {{ . | quote }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- include "zt.selectorLabels" . | nindent 4 }}
spec:
  serviceAccountName: {{ include "zt.serviceAccountName" . }}
  automountServiceAccountToken: true
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  securityContext:
    {{- include "zt.podSecurityContext" . | nindent 4 }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
  {{- else if eq .Values.mode "deployment" }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "zt.selectorLabels" . | nindent 10 }}
  {{- end }}
  containers:
    - name: node
      image: {{ include "zt.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [node, --dir, /etc/zt, --metrics, ":{{ .Values.metrics.port }}", --grace, "{{ max 1 (sub .Values.terminationGracePeriodSeconds 10) }}s"]
      env:
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        - name: NODE_NAME
          valueFrom:
            fieldRef:
              fieldPath: spec.nodeName
        - name: ZT_LOG_LEVEL
          value: {{ .Values.logLevel }}
        {{- with include "zt.goMemLimit" . }}
        - name: GOMEMLIMIT
          value: {{ . | quote }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: metrics
          containerPort: {{ .Values.metrics.port }}
      livenessProbe:
        httpGet:
          path: /livez
          port: metrics
        timeoutSeconds: 5
      readinessProbe:
        httpGet:
          path: /readyz
          port: metrics
        initialDelaySeconds: 1
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "zt.containerSecurityContext" . | nindent 8 }}
      terminationMessagePolicy: FallbackToLogsOnError
      volumeMounts:
        - name: zt
          mountPath: /etc/zt
          readOnly: true
  volumes:
    - name: zt
      projected:
        defaultMode: 0440
        sources:
          - secret:
              name: {{ .Values.clusterKeySecret }}
          - configMap:
              name: {{ include "zt.fullname" . }}-node
{{- end }}

{{- define "zt.podSecurityContext" -}}
runAsNonRoot: true
{{- range $name, $value := .Values.podSecurityContext }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }}: {{ $value | int64 }}
{{- end }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "zt.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
