use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fused_proto::text::v1::generate_response::Message;
use fused_status::{Code, Error};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::keys::Tenant;
use crate::events;
use crate::identity::{Served, Tokens};

const LIMIT_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REMAINING_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RESET_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
const LIMIT_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-limit-tokens");
const REMAINING_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
const RESET_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");

/// What an answer to a tenant with limits says of them, as OpenAI's does.
pub(crate) const RATE_LIMIT_HEADERS: [HeaderName; 6] =
    [LIMIT_REQUESTS, REMAINING_REQUESTS, RESET_REQUESTS, LIMIT_TOKENS, REMAINING_TOKENS, RESET_TOKENS];

/// Who sent a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// None where no key is asked for.
    tenant: Option<Arc<Tenant>>,
    /// Whether it shares no prompt's beginning with other tenants.
    isolates: bool,
}

impl Caller {
    pub(super) fn anybody() -> Self {
        Self { tenant: None, isolates: false }
    }

    pub(super) fn of(tenant: Arc<Tenant>, isolates: bool) -> Self {
        Self { tenant: Some(tenant), isolates }
    }

    /// The salt of its prompts' beginnings, made of its own and of who it is: what one tenant asked must not show to
    /// another by how much is cached. A hash, so that no salt a client sends is another tenant's.
    pub(crate) fn cache_salt(&self, own: Option<String>) -> Option<String> {
        let Some(tenant) = self.tenant.as_ref().filter(|_| self.isolates) else { return own };
        let mut hash = Sha256::new_with_prefix(b"fused cache salt\0");
        hash.update(tenant.identity);
        // No salt is empty: none and one stay apart.
        hash.update(own.unwrap_or_default());
        Some(hash.finalize().iter().fold(String::new(), |mut salt, byte| {
            // Writing to a string does not fail.
            let _ = write!(salt, "{byte:02x}");
            salt
        }))
    }

    /// Counts a request of its tenant in.
    ///
    /// # Errors
    /// `RateLimitExceeded` where the tenant has as many in flight as it may, or has sent as many as it may a minute.
    pub(crate) fn enter(&self) -> Result<Turn, Error> {
        let Some(tenant) = &self.tenant else { return Ok(Turn { tenant: None }) };
        let limits = tenant.limits;
        let mut usage = tenant.usage();
        if let Some(max) = limits.max_requests_in_flight
            && usage.num_in_flight >= max
        {
            events::tenant_refused(&tenant.label, "requests_in_flight");
            let message = format!(
                "{max} requests of this API key are in flight, which is its limit; send the next when one has ended"
            );
            return Err(Error::new(Code::RateLimitExceeded, message));
        }
        if let Some(per_minute) = limits.requests_per_minute {
            let taken = usage.requests.take(1, per_minute, Instant::now());
            taken.map_err(|wait| refusal(tenant, "requests", per_minute, wait))?;
        }
        usage.num_in_flight += 1;
        drop(usage);
        events::tenant_in_flight(&tenant.label, 1.0);
        Ok(Turn { tenant: Some(Arc::clone(tenant)) })
    }

    /// Takes the tokens that a request may come to: what the prompts are thought to have, and what may be generated.
    ///
    /// # Errors
    /// `RateLimitExceeded` where its tenant has no room for them now.
    pub(crate) fn meter(
        &self,
        served: &Arc<Served>,
        num_prompts: usize,
        prompt_tokens: u64,
        output_tokens: u64,
    ) -> Result<TokenMeter, Error> {
        let num_taken = prompt_tokens.saturating_add(output_tokens);
        if let Some(tenant) = &self.tenant
            && let Some(per_minute) = tenant.limits.tokens_per_minute
        {
            let taken = tenant.usage().tokens.take(num_taken, per_minute, Instant::now());
            taken.map_err(|wait| refusal(tenant, "tokens", per_minute, wait))?;
        }
        let unheard = Heard { prompt: None, output: 0 };
        Ok(TokenMeter {
            served: Arc::clone(served),
            tenant: self.tenant.clone(),
            num_taken,
            prompt_tokens,
            has_failed: false,
            prompts: vec![unheard; num_prompts],
        })
    }

    /// Says what the tenant's limits are and what is left.
    pub(crate) fn tell_limits(&self, headers: &mut HeaderMap) {
        let Some(tenant) = &self.tenant else { return };
        let now = Instant::now();
        let mut usage = tenant.usage();
        let mut tell = |names: [HeaderName; 3], per_minute: u32, (room, reset): (u32, Duration)| {
            let [limit, remaining, until_reset] = names;
            headers.insert(limit, per_minute.into());
            headers.insert(remaining, room.into());
            // OpenAI's spelling of a time, in its simplest form.
            if let Ok(reset) = HeaderValue::from_str(&format!("{:.3}s", reset.as_secs_f64())) {
                headers.insert(until_reset, reset);
            }
        };
        if let Some(per_minute) = tenant.limits.requests_per_minute {
            let room = usage.requests.room(per_minute, now);
            tell([LIMIT_REQUESTS, REMAINING_REQUESTS, RESET_REQUESTS], per_minute, room);
        }
        if let Some(per_minute) = tenant.limits.tokens_per_minute {
            let room = usage.tokens.room(per_minute, now);
            tell([LIMIT_TOKENS, REMAINING_TOKENS, RESET_TOKENS], per_minute, room);
        }
    }
}

fn refusal(tenant: &Tenant, what: &'static str, per_minute: u32, wait: Duration) -> Error {
    events::tenant_refused(&tenant.label, what);
    let message =
        format!("this API key has reached its limit of {per_minute} {what} a minute; try again later");
    Error::new(Code::RateLimitExceeded, message).with_retry_after(wait)
}

/// A request of a tenant in flight; counted out when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    tenant: Option<Arc<Tenant>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(tenant) = &self.tenant {
            let mut usage = tenant.usage();
            usage.num_in_flight = usage.num_in_flight.saturating_sub(1);
            drop(usage);
            events::tenant_in_flight(&tenant.label, -1.0);
        }
    }
}

/// Counts a request's tokens as they come, and corrects what was taken for it when dropped.
#[derive(Debug)]
pub(crate) struct TokenMeter {
    served: Arc<Served>,
    tenant: Option<Arc<Tenant>>,
    num_taken: u64,
    /// What all prompts were thought to have.
    prompt_tokens: u64,
    has_failed: bool,
    prompts: Vec<Heard>,
}

/// What is known of one prompt.
#[derive(Clone, Copy, Debug)]
struct Heard {
    prompt: Option<u64>,
    output: u64,
}

impl TokenMeter {
    /// Counts an answer.
    pub(crate) fn count(&mut self, prompt_idx: usize, message: &Message) {
        let Some(heard) = self.prompts.get_mut(prompt_idx) else { return };
        match message {
            Message::PromptInfo(info) => heard.prompt = Some(info.prompt_tokens().into()),
            Message::Text(increment) => heard.output += increment.token_ids.len() as u64,
            Message::Finish(_) => {}
            Message::Usage(usage) => {
                *heard = Heard {
                    prompt: Some(usage.prompt_tokens().into()),
                    output: usage.completion_tokens().into(),
                };
            }
        }
    }

    /// The request failed: a prompt of which nothing was heard costs nothing.
    pub(crate) fn fail(&mut self) {
        self.has_failed = true;
    }

    /// Prompt and output tokens. Whoever leaves before a prompt's first answer has set off its work all the same.
    fn totals(&self) -> (u64, u64) {
        let unheard = if self.has_failed { 0 } else { self.prompt_tokens / self.prompts.len().max(1) as u64 };
        let prompt = self.prompts.iter().map(|heard| heard.prompt.unwrap_or(unheard)).sum();
        (prompt, self.prompts.iter().map(|heard| heard.output).sum())
    }
}

impl Drop for TokenMeter {
    fn drop(&mut self) {
        let (prompt, completion) = self.totals();
        let label = self.tenant.as_ref().map(|tenant| Arc::clone(&tenant.label));
        self.served.tell_tokens(Tokens { tenant: label, prompt, completion });
        let Some(tenant) = &self.tenant else { return };
        if let Some(per_minute) = tenant.limits.tokens_per_minute {
            tenant.usage().tokens.correct(self.num_taken, prompt + completion, per_minute, Instant::now());
        }
        events::tenant_tokens(&tenant.label, prompt, completion);
    }
}

#[cfg(test)]
mod tests {
    use fused_proto::text::v1::{PromptInfo, TextIncrement, Usage};

    use super::super::limits::Limits;
    use super::*;

    fn caller(name: &str, limits: Limits) -> Caller {
        Caller::of(Arc::new(Tenant::new(Some(name), &[0; 32], limits)), true)
    }

    fn room(caller: &Caller) -> u64 {
        let mut headers = HeaderMap::new();
        caller.tell_limits(&mut headers);
        headers[REMAINING_TOKENS].to_str().unwrap().parse().unwrap()
    }

    #[test]
    fn salts_keep_tenants_apart_whatever_they_send() {
        let (first, second) = (caller("a", Limits::default()), caller("b", Limits::default()));
        let own = || Some("x".to_owned());
        let salts = [
            first.cache_salt(None),
            first.cache_salt(own()),
            second.cache_salt(None),
            second.cache_salt(own()),
        ];
        for (idx, salt) in salts.iter().enumerate() {
            assert_eq!(salt.as_ref().unwrap().len(), 64);
            assert!(!salts[..idx].contains(salt));
            // Nor does sending another's salt help.
            assert!(!salts.contains(&second.cache_salt(salt.clone())));
        }
        assert_eq!(salts[0], first.cache_salt(None));
        let shared = Caller { isolates: false, ..first };
        assert_eq!((shared.cache_salt(None), shared.cache_salt(own())), (None, own()));
    }

    #[test]
    fn requests_in_flight_end_with_their_turns() {
        let caller = caller("a", Limits { max_requests_in_flight: Some(2), ..Limits::default() });
        let (first, _second) = (caller.enter().unwrap(), caller.enter().unwrap());
        assert_eq!(caller.enter().unwrap_err().code(), Code::RateLimitExceeded);
        drop(first);
        drop(caller.enter().unwrap());
        caller.enter().unwrap();
    }

    #[test]
    fn tokens_are_estimated_and_corrected_by_what_was_heard() {
        let limits = Limits { tokens_per_minute: Some(6_000_000), ..Limits::default() };
        let caller = caller("a", limits);
        let near = |expected: u64| {
            let room = room(&caller);
            // It fills again by a hundred a millisecond.
            assert!((expected..expected + 1_000_000).contains(&room), "{room} is not {expected}");
        };
        let info =
            Message::PromptInfo(PromptInfo { prompt_tokens: Some(1_500_000), ..PromptInfo::default() });
        let mut meter = caller.meter(&Arc::default(), 2, 2_000_000, 4_000_000).unwrap();
        near(0);
        assert!(
            caller.meter(&Arc::default(), 1, 2_000_000, 0).unwrap_err().retry_after_ms().unwrap() > 10_000
        );
        meter.count(0, &info);
        // The client leaves: one prompt is known, the other was thought to have half of the estimate.
        drop(meter);
        near(3_500_000);
        let mut meter = caller.meter(&Arc::default(), 1, 0, 1_500_000).unwrap();
        meter.count(0, &info);
        meter.count(0, &Message::Text(TextIncrement { token_ids: vec![1; 3], ..TextIncrement::default() }));
        let usage = Usage { prompt_tokens: Some(10), completion_tokens: Some(1_000_000), ..Usage::default() };
        meter.count(0, &Message::Usage(usage));
        assert_eq!(meter.totals(), (10, 1_000_000));
        drop(meter);
        near(2_500_000 - 10);
        let mut refused = caller.meter(&Arc::default(), 1, 2_000_000, 0).unwrap();
        refused.fail();
        drop(refused);
        near(2_500_000 - 10);
    }
}
