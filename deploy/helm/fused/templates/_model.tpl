{{/*
Where tokenizer and engine find the model: arguments, mounts and volumes for each form of model.uri. The schema has
checked the form. Without a served name the last folder of the path is the model's name in the API, so a volume is
mounted under a name of its own.
*/}}

{{- define "fused.model.args" -}}
{{- with .Values.model.uri }}
{{- if hasPrefix "hf://" . }}
- --model={{ trimPrefix "hf://" . }}
{{- else if hasPrefix "pvc://" . }}
- --model=/models/{{ trimPrefix "pvc://" . }}
{{- else }}
- --model=/models/{{ base . }}
{{- end }}
{{- end }}
{{- with .Values.model.servedName }}
- --served-model-name={{ . }}
{{- end }}
{{- if .Values.model.patchVocabulary.configMap }}
- --patch-vocabulary=/etc/fused/patch-vocabulary/patch_vocabulary.json
{{- end }}
{{- end -}}

{{- define "fused.model.mounts" -}}
{{- with .Values.model.uri }}
{{- if hasPrefix "hf://" . }}
- name: model-cache
  mountPath: /var/cache/fused
{{- else if hasPrefix "pvc://" . }}
- name: model
  mountPath: /models/{{ trimPrefix "pvc://" . | splitList "/" | first }}
  readOnly: true
{{- else }}
- name: model
  mountPath: /models/{{ base . }}
  readOnly: true
{{- end }}
{{- end }}
{{- if .Values.model.patchVocabulary.configMap }}
- name: patch-vocabulary
  mountPath: /etc/fused/patch-vocabulary
  readOnly: true
{{- end }}
{{- end -}}

{{- define "fused.model.volumes" -}}
{{- with .Values.model.uri }}
{{- if hasPrefix "hf://" . }}
- name: model-cache
  emptyDir:
    sizeLimit: {{ $.Values.model.cacheSizeLimit }}
{{- else if hasPrefix "pvc://" . }}
- name: model
  persistentVolumeClaim:
    claimName: {{ trimPrefix "pvc://" . | splitList "/" | first }}
    readOnly: true
{{- else }}
- name: model
  hostPath:
    path: {{ trimPrefix "hostpath://" . }}
    type: Directory
{{- end }}
{{- end }}
{{- with .Values.model.patchVocabulary }}
{{- if .configMap }}
- name: patch-vocabulary
  configMap:
    name: {{ .configMap }}
    items:
      - key: {{ .key }}
        path: patch_vocabulary.json
{{- end }}
{{- end }}
{{- end -}}
