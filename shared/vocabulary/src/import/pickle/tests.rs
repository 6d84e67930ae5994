use proptest::prelude::*;

use super::*;

const TOY: &[u8] = include_bytes!("../../../../../tests/golden/adaptivocab-toy/patch_tokenizer.pkl");

fn anything(class: Class) -> bool {
    class.of_tokenizer() || class.of_tensor() || class.of_storage()
}

fn refused(bytes: &[u8]) -> String {
    match read(bytes, anything) {
        Err(refused) => refused.to_string(),
        Ok(_) => panic!("not refused: {}", bytes.escape_ascii()),
    }
}

fn long_text(opcode: u8, text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).unwrap();
    [&[opcode], &len.to_le_bytes()[..], text.as_bytes()].concat()
}

#[test]
fn every_opcode_that_is_read_means_what_python_means_by_it() {
    let text = |bytes: &[u8]| read(bytes, Class::none).unwrap().root().text().unwrap().to_owned();
    assert_eq!(text(b"\x8c\x03abc."), "abc");
    assert_eq!(text(&[&long_text(b'X', "ä▁"), &b"."[..]].concat()), "ä▁");
    assert_eq!(text(b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01x\x94."), "x");

    let int = |bytes: &[u8]| read(bytes, Class::none).unwrap().root().int::<i64>().unwrap();
    assert_eq!(int(b"K\xff."), 255);
    assert_eq!(int(b"M\x01\x02."), 513);
    assert_eq!(int(b"J\xff\xff\xff\xff."), -1);
    assert_eq!(int(b"\x8a\x00."), 0);
    assert_eq!(int(b"\x8a\x01\xff."), -1);
    assert_eq!(int(b"\x8a\x02\xff\x00."), 255);
    assert_eq!(int(b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80."), i64::MIN);
    let long = read(b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01.", Class::none).unwrap();
    assert_eq!(long.root().long().unwrap(), [0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert!(long.root().int::<i64>().is_err());

    for bytes in [&b"C\x02ab."[..], b"B\x02\x00\x00\x00ab.", b"\x8e\x02\0\0\0\0\0\0\0ab."] {
        assert_eq!(read(bytes, Class::none).unwrap().root().bytes().unwrap(), b"ab");
    }
    let ints = |view: Vec<View<'_, '_>>| view.into_iter().map(|v| v.int::<u8>().unwrap()).collect::<Vec<_>>();
    let tuple = |bytes: &[u8]| ints(read(bytes, Class::none).unwrap().root().tuple().unwrap().collect());
    assert!(tuple(b").").is_empty());
    assert_eq!(tuple(b"K\x01\x85."), [1]);
    assert_eq!(tuple(b"K\x01K\x02\x86."), [1, 2]);
    assert_eq!(tuple(b"K\x01K\x02K\x03\x87."), [1, 2, 3]);
    assert_eq!(tuple(b"(K\x01K\x02K\x03K\x04t."), [1, 2, 3, 4]);
    let list = |bytes: &[u8]| ints(read(bytes, Class::none).unwrap().root().list().unwrap().collect());
    assert_eq!(list(b"]K\x01a(K\x02K\x03e."), [1, 2, 3]);
    // What the memo holds is the list itself, not what it held then.
    let same = read(b"]q\x00h\x00K\x02a\x86.", Class::none).unwrap();
    let [first, _] = same.root().tuple_of().unwrap();
    assert_eq!(first.list().unwrap().len(), 1);
}

#[test]
fn the_memo_shares_and_dictionaries_keep_their_order() {
    let pickle = read(b"}(\x8c\x01b\x94K\x01\x8c\x01aK\x02uh\x00r\x01\0\0\0\x85\x86.", Class::none).unwrap();
    let [dict, tuple] = pickle.root().tuple_of().unwrap();
    let keys: Vec<_> = dict.dict().unwrap().map(|(key, _)| key.text().unwrap()).collect();
    assert_eq!(keys, ["b", "a"]);
    let [again] = tuple.tuple_of().unwrap();
    assert_eq!(again.text().unwrap(), "b");
    assert_eq!(dict.at("a").unwrap().int::<u8>().unwrap(), 2);
    assert_eq!(dict.at("c").err().unwrap(), "has no `c`");
    let twice = read(b"}\x8c\x01aK\x01s\x8c\x01aK\x02s.", Class::none).unwrap();
    assert_eq!(twice.root().at("a").err().unwrap(), "has `a` twice");
    let large = [&b"}("[..], &b"NN".repeat(257), b"u."].concat();
    let large = read(&large, Class::none).unwrap();
    assert_eq!(large.root().at("a").err().unwrap(), "has 257 keys where at most 256 are expected");
}

#[test]
fn tokenizers_of_transformers_are_known_by_what_their_names_have_in_common() {
    let find = |module: &str, name: &str| Class::find(module, name, Class::of_tokenizer);
    for (module, name) in [
        ("transformers.models.llama.tokenization_llama_fast", "LlamaTokenizerFast"),
        ("transformers.models.llama.tokenization_llama", "LlamaTokenizer"),
        ("transformers.models.gpt2.tokenization_gpt2", "GPT2Tokenizer"),
        ("transformers.models.qwen2.tokenization_qwen2", "Qwen2Tokenizer"),
        ("transformers.tokenization_utils_fast", "PreTrainedTokenizerFast"),
        ("transformers.tokenization_utils_tokenizers", "TokenizersBackend"),
    ] {
        assert_eq!(find(module, name), Ok(Class::TransformersTokenizer), "{module}.{name}");
        assert!(Class::find(module, name, Class::of_tensor).is_err(), "{module}.{name} is no tensor");
    }
    for (module, name) in [
        ("transformers.models.llama.tokenization_llama", "LlamaTokenizer.from_pretrained"),
        ("transformers.models.llama.modeling_llama", "LlamaTokenizer"),
        ("transformers.models.llama.tokenization_llama.os", "Tokenizer"),
        ("transformers.models.tokenization_llama", "LlamaTokenizer"),
        ("models.llama.tokenization_llama", "LlamaTokenizer"),
        ("os", "Tokenizer"),
    ] {
        assert!(find(module, name).is_err(), "{module}.{name}");
    }
}

#[test]
fn a_name_that_is_not_read_is_refused_by_it() {
    for (bytes, name, at) in [
        (&b"cos\nsystem\n(S'id'\ntR."[..], "os.system", 0),
        (b"\x80\x02cos\nsystem\n(X\x02\0\0\0idtR.", "os.system", 2),
        (b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x85R.", "posix.system", 19),
        (b"\x80\x04\x8c\x08builtins\x94\x8c\x04eval\x94\x93\x8c\x01x\x85R.", "builtins.eval", 20),
        (b"c__builtin__\neval\n(S'x'\ntR.", "__builtin__.eval", 0),
        // Of a module that is read, another function; of a class that is read, a method; and one with a dot in its name.
        (b"ctorch.storage\n_load_from_file\n.", "torch.storage._load_from_file", 0),
        (b"ctokenizers\nTokenizer.from_file\n.", "tokenizers.Tokenizer.from_file", 0),
        (b"ctokenizers.Tokenizer\nfrom_file\n.", "tokenizers.Tokenizer.from_file", 0),
        (b"\x8c\x01\x1b\x8c\x02a\n\x93.", "\\u{1b}.a\\n", 7),
    ] {
        assert_eq!(refused(bytes), format!("pickle asks for {name}, which is not read (byte {at})"));
    }
    // What one kind of file may ask for, another may not.
    let tensor = b"ctorch\nFloatStorage\n.";
    assert!(read(tensor, Class::of_storage).is_ok());
    let error = read(tensor, Class::of_tokenizer).err().unwrap().to_string();
    assert_eq!(error, "pickle asks for torch.FloatStorage, which is not read (byte 0)");
}

#[test]
fn an_opcode_that_is_not_read_is_refused_by_its_name() {
    for (bytes, name) in [
        (&b"S'id'\n."[..], "STRING"),
        (b"(I1\n.", "INT"),
        (b"(ios\nsystem\n.", "INST"),
        (b")(o.", "OBJ"),
        (b"\x92.", "NEWOBJ_EX"),
        (b"\x82\x01.", "EXT1"),
        (b"N0.", "POP"),
        (b"N2.", "DUP"),
        (b"P1\n.", "PERSID"),
        (b"G\0\0\0\0\0\0\0\0.", "BINFLOAT"),
        (b"\x8f.", "EMPTY_SET"),
        (b"\x97.", "NEXT_BUFFER"),
    ] {
        assert!(refused(bytes).contains(&format!("has the opcode {name}, which is not read")), "{name}");
    }
    assert_eq!(refused(b"\xff"), "pickle has the byte 0xff where an opcode must stand (byte 0)");
    let persistent = read(b"NQ.", Class::of_tokenizer).err().unwrap().to_string();
    assert_eq!(persistent, "pickle has the opcode BINPERSID, which is not read (byte 1)");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let tokenizer = "ctokenizers\nTokenizer\n";
    let function = "ctorch._utils\n_rebuild_tensor_v2\n";
    for (bytes, problem) in [
        (String::new(), "ends without STOP"),
        (".".into(), "takes a value where there is none"),
        ("NN.".into(), "values left over"),
        ("N(.".into(), "takes a value where there is none"),
        ("N(N.".into(), "values left over"),
        ("K\u{1}(a.".into(), "takes a value where there is none"),
        ("t.".into(), "a mark where there is none"),
        ("]e.".into(), "a mark where there is none"),
        ("NNa.".into(), "no list"),
        ("NNNs.".into(), "no dictionary"),
        ("}(Nu.".into(), "a key without a value"),
        ("h\u{0}.".into(), "place 0 of its memo, which is empty"),
        ("Nq\u{1}.".into(), "place 1 of its memo where 0 is next"),
        ("Nr\u{7f}\u{7f}\u{7f}\u{7f}.".into(), "where 0 is next"),
        ("q\u{0}.".into(), "takes a value where there is none"),
        ("NNb.".into(), "no object"),
        ("]Nb.".into(), "no object"),
        (format!("{tokenizer}Nb."), "no object"),
        (format!("{tokenizer})R."), "in a way that is not read"),
        (format!("{function})\u{0}"), "has the byte 0x00"),
        (format!("{tokenizer}NR."), "in a way that is not read"),
        (format!("{function}NR."), "no tuple"),
        ("N)R.".into(), "calls what is no name"),
        ("X\u{5}\u{0}\u{0}\u{0}torch)R.".into(), "calls what is no name"),
        ("catorch".into(), "a name without an end"),
        (format!("c{}\n", "a".repeat(300)), "a name without an end"),
        ("N.N".into(), "ends before the file's last 1 bytes"),
    ] {
        assert!(refused(bytes.as_bytes()).contains(problem), "{bytes:?}: {}", refused(bytes.as_bytes()));
    }
    for (bytes, problem) in [
        (&b"\x80\x06N."[..], "of protocol 6; 2 to 5 are read"),
        (b"\x80\x01N.", "of protocol 1"),
        (b"N\x80\x04.", "PROTO after its beginning"),
        (b"\x8c\x02\xff\xfe.", "not UTF-8"),
        (b"NN\x93.", "a name that is no text"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)\x81.", "in a way that is not read"),
        (b"ctokenizers\nTokenizer\n)\x81NbNb.", "two states"),
    ] {
        assert!(refused(bytes).contains(problem), "{}: {}", bytes.escape_ascii(), refused(bytes));
    }
}

#[test]
fn a_length_that_is_not_there_costs_nothing() {
    let huge = 1_u64 << 60;
    for bytes in [
        [&b"\x8e"[..], &huge.to_le_bytes(), b"abc"].concat(),
        [&b"\x8e"[..], &u64::MAX.to_le_bytes(), b"abc"].concat(),
        b"B\xff\xff\xff\xffabc".to_vec(),
        b"X\xff\xff\xff\x7fabc".to_vec(),
        b"C\xffabc".to_vec(),
        b"\x8c\xffabc".to_vec(),
        b"\x8a\xffabc".to_vec(),
    ] {
        assert!(refused(&bytes).contains("where 3 are left"), "{}", refused(&bytes));
    }
    let frame = [&b"\x80\x04\x95"[..], &huge.to_le_bytes(), b"N."].concat();
    assert!(refused(&frame).contains("a frame of 1152921504606846976 bytes where 2 are left"));
}

#[test]
fn what_the_memo_repeats_is_stored_once() {
    // Each list holds the one before it twice: 2^200 lists for whoever followed them.
    let mut bomb = b"]q\x00".to_vec();
    for level in 1..=200_u8 {
        bomb.extend([b']', b'q', level, b'(', b'h', level - 1, b'h', level - 1, b'e']);
    }
    // The lists left over are swept into a tuple.
    let bomb = [&b"("[..], &bomb, b"t."].concat();
    assert_eq!(read(&bomb, Class::none).unwrap().num_values(), 202);
    // A list within itself.
    assert_eq!(read(b"]q\x00h\x00a.", Class::none).unwrap().num_values(), 1);
}

#[test]
fn depth_and_number_of_values_are_bounded() {
    // Dropping a million tuples, each in the next, must not take a million frames of the stack.
    let nested = [&b")"[..], &vec![0x85; 1_000_000], b"."].concat();
    assert_eq!(read(&nested, Class::none).unwrap().num_values(), 1_000_001);
    assert!(refused(&vec![b'N'; MAX_STACK + 1]).contains("puts over 65536 values on its stack"));
    assert!(refused(&vec![b'('; MAX_STACK + 1]).contains("puts over 65536 values on its stack"));
    let many = [&b"]"[..], &b"Na".repeat(MAX_PUSHES)].concat();
    assert!(refused(&many).contains("has over 8388608 values"));
}

#[test]
fn a_pickle_that_is_cut_off_anywhere_is_refused() {
    for len in 0..TOY.len() {
        assert!(read(&TOY[..len], anything).is_err(), "{len}");
    }
    assert!(read(TOY, Class::of_tokenizer).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_pickles_are_read_or_refused(
        changes in prop::collection::vec((0..TOY.len(), any::<u8>()), 1..8),
        cut in 0..TOY.len(),
    ) {
        let mut bytes = TOY.to_vec();
        changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        let _ = read(&bytes, anything);
        bytes.drain(cut..(cut + changes.len()).min(TOY.len()));
        let _ = read(&bytes, anything);
    }

    /// Programs of opcodes that are read, which get further than random bytes do.
    #[test]
    fn programs_are_read_or_refused(
        ops in prop::collection::vec(prop::sample::select(&b"(.NKM])}tase\x85\x86\x87uhqb\x81R\x93Q\x94"[..]), 0..60),
    ) {
        let mut bytes = Vec::new();
        for op in ops {
            bytes.push(op);
            bytes.extend(matches!(op, b'K' | b'h' | b'q').then_some(1));
            bytes.extend((op == b'M').then_some([1, 2]).into_iter().flatten());
        }
        if let Ok(pickle) = read(&bytes, anything) {
            prop_assert!(pickle.num_values() <= bytes.len());
        }
    }
}
