use std::time::Duration;

use tokio::time::Instant;

/// Says when the log is to be told of trouble that only an operator can end, while it is tried on: at once, and then
/// every minute. So it is neither passed over in silence nor does it fill the log.
#[derive(Debug, Clone, Default)]
pub struct Reminder {
    told: Option<Instant>,
}

impl Reminder {
    const EVERY: Duration = Duration::from_secs(60);

    /// Whether the log is to be told now.
    pub fn is_due(&mut self) -> bool {
        let due = self.told.is_none_or(|told| told.elapsed() >= Self::EVERY);
        if due {
            self.told = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn trouble_is_told_at_once_and_then_every_minute() {
        let mut reminder = Reminder::default();
        let mut told = Vec::new();
        for second in 0..125 {
            if reminder.is_due() {
                told.push(second);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(told, [0, 60, 120]);
    }
}
