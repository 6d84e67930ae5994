/// A name that a pickle may ask for. It is compared, never looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Class {
    /// A tokenizer of transformers; which one says nothing that its `tokenizer.json` does not.
    TransformersTokenizer,
    /// `tokenizers.Tokenizer`: its state is the text of a `tokenizer.json`.
    Tokenizer,
    /// `tokenizers.models.Model`: an empty one, the argument of a [`Class::Tokenizer`].
    TokenizerModel,
    /// `tokenizers.AddedToken`.
    AddedToken,
    /// A tensor of some storage.
    RebuildTensor,
    /// A storage, from the bytes that `torch.save` wrote.
    StorageFromBytes,
    /// The type of a storage: 32-bit floats.
    FloatStorage,
    /// The empty hooks of a tensor.
    OrderedDict,
}

/// Module, name, class: all there are beside [`is_model_tokenizer`].
const CLASSES: [(&str, &str, Class); 9] = [
    ("transformers.tokenization_utils_fast", "PreTrainedTokenizerFast", Class::TransformersTokenizer),
    ("transformers.tokenization_utils_tokenizers", "TokenizersBackend", Class::TransformersTokenizer),
    ("tokenizers", "Tokenizer", Class::Tokenizer),
    ("tokenizers.models", "Model", Class::TokenizerModel),
    ("tokenizers", "AddedToken", Class::AddedToken),
    ("torch._utils", "_rebuild_tensor_v2", Class::RebuildTensor),
    ("torch.storage", "_load_from_bytes", Class::StorageFromBytes),
    ("torch", "FloatStorage", Class::FloatStorage),
    ("collections", "OrderedDict", Class::OrderedDict),
];

/// Whether the name is one that transformers gives a model's tokenizer: `LlamaTokenizerFast` up to version 4,
/// `LlamaTokenizer` from version 5 on, in `transformers.models.llama.tokenization_llama…`.
fn is_model_tokenizer(module: &str, name: &str) -> bool {
    let file = module.strip_prefix("transformers.models.").and_then(|rest| rest.split_once('.'));
    let model = name.strip_suffix("Fast").unwrap_or(name).strip_suffix("Tokenizer");
    file.is_some_and(|(_, file)| file.starts_with("tokenization_") && !file.contains('.'))
        && model.is_some_and(|model| model.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Which names a kind of file may ask for.
pub(in super::super) type Allowed = fn(Class) -> bool;

impl Class {
    /// What the files of plain dictionaries ask for.
    pub(in super::super) fn none(self) -> bool {
        false
    }

    /// What a pickled tokenizer asks for.
    pub(in super::super) fn of_tokenizer(self) -> bool {
        matches!(
            self,
            Self::TransformersTokenizer | Self::Tokenizer | Self::TokenizerModel | Self::AddedToken
        )
    }

    /// What a pickled tensor asks for.
    pub(in super::super) fn of_tensor(self) -> bool {
        matches!(self, Self::RebuildTensor | Self::StorageFromBytes | Self::OrderedDict)
    }

    /// What a storage, as `torch.save` wrote it, asks for.
    pub(in super::super) fn of_storage(self) -> bool {
        matches!(self, Self::FloatStorage)
    }

    pub(super) fn find(module: &str, name: &str, allowed: Allowed) -> Result<Self, String> {
        let known = CLASSES.iter().find(|class| class.0 == module && class.1 == name).map(|class| class.2);
        let tokenizer = || is_model_tokenizer(module, name).then_some(Self::TransformersTokenizer);
        match known.or_else(tokenizer) {
            Some(class) if allowed(class) => Ok(class),
            // A name may hold anything, line breaks and terminal codes too.
            _ => Err(format!("asks for {}.{}, which is not read", shown(module), shown(name))),
        }
    }

    /// Whether objects are made of it by NEWOBJ, as of a class, or by REDUCE, as by a function.
    pub(super) fn is_made_by_newobj(self) -> bool {
        self.of_tokenizer()
    }

    pub(super) fn is_called_by_reduce(self) -> bool {
        self.of_tensor()
    }

    /// Module and name; of several names of one class the first.
    pub(super) fn path(self) -> String {
        let class = CLASSES.iter().find(|class| class.2 == self);
        class.map_or_else(String::new, |(module, name, _)| format!("{module}.{name}"))
    }
}

fn shown(name: &str) -> String {
    name.escape_debug().take(100).collect()
}
