{{- define "serveprune.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "serveprune.fullname" -}}
{{- $name := include "serveprune.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "serveprune.selector" -}}
app.kubernetes.io/name: {{ include "serveprune.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "serveprune.labels" -}}
{{ include "serveprune.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "serveprune.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "serveprune.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "serveprune.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default (printf "%s-%s" .Chart.AppVersion .Values.image.target) .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "serveprune.claimName" -}}
{{- default (printf "%s-store" (include "serveprune.fullname" .)) .Values.store.persistentVolumeClaim.existingClaim -}}
{{- end -}}

{{- /* Whether the volume of the store can be mounted by the pods of one node, or one pod, only. */ -}}
{{- define "serveprune.isMountedOnce" -}}
{{- with .Values.store -}}
{{- if and (eq .kind "persistentVolumeClaim") (not (has "ReadWriteMany" .persistentVolumeClaim.accessModes)) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Cores that a quantity such as 1500m or "2" gives, rounded up. */ -}}
{{- define "serveprune.cores" -}}
{{- $quantity := toString . -}}
{{- if hasSuffix "m" $quantity -}}
{{- divf (trimSuffix "m" $quantity | float64) 1000 | ceil | int -}}
{{- else -}}
{{- float64 $quantity | ceil | int -}}
{{- end -}}
{{- end -}}

{{- /* Values that are well-formed each, and do not go together. */ -}}
{{- define "serveprune.validate" -}}
{{- $pods := .Values.replicas -}}
{{- if .Values.autoscaling.enabled -}}
{{- $pods = .Values.autoscaling.maxReplicas -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail (printf "autoscaling: expected minReplicas of at most maxReplicas, got %v and %v" .Values.autoscaling.minReplicas .Values.autoscaling.maxReplicas) -}}
{{- end -}}
{{- $targets := 0 -}}
{{- range .Values.autoscaling.targets -}}{{- if not (kindIs "invalid" .) -}}{{- $targets = add1 $targets -}}{{- end -}}{{- end -}}
{{- if not $targets -}}
{{- fail "autoscaling.targets: expected at least one, got none; set one of queueP95Seconds, requestsInFlight, durationP95Seconds, cpuPercent" -}}
{{- end -}}
{{- end -}}
{{- if and (gt (int $pods) 1) (include "serveprune.isMountedOnce" .) -}}
{{- fail (printf "store.persistentVolumeClaim.accessModes: expected ReadWriteMany for %d pods, got %s; or set store.kind to s3 or emptyDir" (int $pods) (join ", " .Values.store.persistentVolumeClaim.accessModes)) -}}
{{- end -}}
{{- if and (eq .Values.store.kind "s3") (not .Values.store.s3.uri) -}}
{{- fail "store.s3.uri: expected s3://BUCKET/PREFIX for store.kind s3, got nothing" -}}
{{- end -}}
{{- if and (eq .Values.store.kind "emptyDir") (eq .Values.image.target "serve") -}}
{{- fail "store.kind: expected persistentVolumeClaim or s3 with image.target serve, which makes no artifacts, got emptyDir, which has none" -}}
{{- end -}}
{{- range $key, $instead := dict "http" "ports.http" "grpc" "ports.grpc" "metrics" "ports.metrics" "admin" "admin and ports" "tls" "tls" "tokens" "tokens" -}}
{{- if hasKey $.Values.config.server $key -}}
{{- fail (printf "config.server.%s: expected nothing, for the chart says it; set %s" $key $instead) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.admin.enabled (not .Values.admin.tokensSecret) -}}
{{- fail "admin.tokensSecret: expected the name of a Secret with the tokens of operators, got nothing; the admin API needs one" -}}
{{- end -}}
{{- if and .Values.tls.clientCertificates (not .Values.tls.existingSecret) -}}
{{- fail "tls.clientCertificates: expected tls.existingSecret with it, for without TLS there are no certificates, got nothing" -}}
{{- end -}}
{{- $ports := list .Values.ports.http .Values.ports.grpc .Values.ports.metrics -}}
{{- if .Values.admin.enabled -}}{{- $ports = concat $ports (list .Values.ports.adminHttp .Values.ports.adminGrpc) -}}{{- end -}}
{{- if ne (len $ports) (len (uniq $ports)) -}}
{{- fail (printf "ports: expected different ones, got %s" (join ", " $ports)) -}}
{{- end -}}
{{- end -}}

{{- /* serveprune.yaml, as a mapping. */ -}}
{{- define "serveprune.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $server := $config.server -}}
{{- range $name, $port := dict "http" .Values.ports.http "grpc" .Values.ports.grpc "metrics" .Values.ports.metrics -}}
{{- $_ := set $server $name (printf "%s:%d" $.Values.listenHost (int $port)) -}}
{{- end -}}
{{- if not (hasKey $server "executors") -}}
{{- $limits := default dict .Values.resources.limits -}}
{{- $requests := default dict .Values.resources.requests -}}
{{- with default (get $requests "cpu") (get $limits "cpu") -}}
{{- $_ := set $server "executors" (max 1 (include "serveprune.cores" . | int) (int (default 1 $server.processes))) -}}
{{- end -}}
{{- end -}}
{{- if .Values.tls.existingSecret -}}
{{- $tls := dict "certificate_file" "/run/serveprune/tls/tls.crt" "key_file" "/run/serveprune/tls/tls.key" -}}
{{- if .Values.tls.clientCertificates -}}{{- $_ := set $tls "client_ca_file" "/run/serveprune/tls/ca.crt" -}}{{- end -}}
{{- $_ := set $server "tls" $tls -}}
{{- end -}}
{{- with .Values.tokens.existingSecret -}}
{{- $_ := set $server "tokens" (dict "file" "/run/serveprune/tokens/tokens") -}}
{{- end -}}
{{- if .Values.admin.enabled -}}
{{- $admin := dict "tokens" (dict "file" "/run/serveprune/admin/tokens") -}}
{{- $_ := set $admin "http" (printf "%s:%d" .Values.listenHost (int .Values.ports.adminHttp)) -}}
{{- $_ := set $admin "grpc" (printf "%s:%d" .Values.listenHost (int .Values.ports.adminGrpc)) -}}
{{- $_ := set $server "admin" $admin -}}
{{- end -}}
{{- $_ := set $config.store "path" (eq .Values.store.kind "s3" | ternary .Values.store.s3.uri "/var/lib/serveprune") -}}
{{- if eq .Values.store.kind "s3" -}}
{{- $_ := set $config.store "cache_path" "/var/lib/serveprune" -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- /* The sections of it that a running server cannot take on: another sum replaces the pods. */ -}}
{{- define "serveprune.restartChecksum" -}}
{{- $config := include "serveprune.config" . | fromYaml -}}
{{- pick $config "server" "builds" "store" "repository" | toJson | sha256sum -}}
{{- end -}}

{{- /* What a probe asks: {path, root} */ -}}
{{- define "serveprune.probe" -}}
{{- $tls := .root.Values.tls -}}
{{- if and $tls.existingSecret $tls.clientCertificates -}}
tcpSocket: {port: http}
{{- else -}}
httpGet:
  path: {{ .path }}
  port: http
  scheme: {{ not (empty $tls.existingSecret) | ternary "HTTPS" "HTTP" }}
{{- end -}}
{{- end -}}
