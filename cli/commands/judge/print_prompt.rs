//! `j1 judge --print-prompt` and `--print-template`: what the judge would read, without a judge.

use std::io::{self, IsTerminal};

use engine::{
    checkpoint::config::Config,
    text::{
        chat::ChatTemplate,
        tokenizer::{Encoded, Tokenizer},
    },
};
use serde_json::json;
use trainer::{
    data::Pair,
    judge::{Prompter, prompt::Order},
};

use crate::{
    Failure,
    args::{Judge, JudgeOrder},
    output::{note, print},
    session::{note_unread, render_options, resolve, template},
};

/// The template in the form of a template file.
pub(crate) fn print_template(args: &Judge) -> Result<(), Failure> {
    Ok(print(&template(&args.generation)?.to_source())?)
}

/// Each prompt to stdout and nothing else, so that it can be piped; what it is to stderr.
pub(crate) fn print_prompts(args: &Judge, model: &str, pairs: &[Pair]) -> Result<(), Failure> {
    let (directory, _) = resolve(model, None)?;
    let config = Config::load(&directory)?;
    let tokenizer = Tokenizer::load(&directory)?;
    let chat = ChatTemplate::load(&directory)?;
    let control = tokenizer.control_tokens().with(chat.markers());
    let template = template(&args.generation)?.with_control_tokens(control);
    let positions = config.max_position_embeddings;
    let options = render_options(&args.generation);
    note_unread(&chat, &template, options);
    let prompter =
        Prompter { template: &template, chat: &chat, tokenizer: &tokenizer, options, positions };
    let orders: &[Order] = match args.order.unwrap_or(JudgeOrder::Given) {
        JudgeOrder::Given => &[Order::ChosenFirst],
        JudgeOrder::Both => &[Order::ChosenFirst, Order::RejectedFirst],
    };
    for pair in pairs {
        for &order in orders {
            let text = prompter.text(pair, order)?;
            let encoded = prompter.encode(pair, &text)?;
            let whole = matches!(encoded, Encoded::Whole(_));
            let (first, tokens) = (first_reply(order), encoded.len());
            if args.json {
                let line = json!({
                    "id": pair.id,
                    "first_reply": first,
                    "tokens": tokens,
                    "counted_whole": whole,
                    "prompt": text,
                });
                print(&format!("{line}\n"))?;
                continue;
            }
            let more = if whole { "" } else { "more than " };
            note(&format!(
                "── {} · reply {first} first · {more}{tokens} tokens of {positions} ──",
                pair.id
            ));
            print(&text)?;
            if io::stdout().is_terminal() && !text.ends_with('\n') {
                print("\n")?;
            }
        }
    }
    Ok(())
}

fn first_reply(order: Order) -> &'static str {
    match order {
        Order::ChosenFirst => "A",
        Order::RejectedFirst => "B",
    }
}
