import Recorder
import Testing
import VMCore

@Suite struct CheckpointPolicyTests {
    private func ms(_ n: UInt64) -> Nanoseconds { .milliseconds(n) }

    private func due(_ policy: CheckpointPolicy, at exit: UInt64, _ now: Nanoseconds) -> Bool {
        var policy = policy
        return policy.isDue(at: ExitNumber(exit), now: now)
    }

    @Test func theDefaultGoesByTimeAndByExits() {
        var policy = CheckpointPolicy()
        #expect(!due(policy, at: 4_999, ms(249)))
        #expect(due(policy, at: 1, ms(250)))
        #expect(!due(policy, at: 1_000_000, ms(49)))
        #expect(due(policy, at: 5_000, ms(50)))
        policy.took(.microseconds(100), at: ExitNumber(5_000), now: ms(60))
        #expect(!due(policy, at: 9_999, ms(309)))
        #expect(due(policy, at: 10_000, ms(110)))
        #expect(due(policy, at: 5_001, ms(310)))
        #expect(policy.spreadTo == nil)
    }

    @Test func whatIsAskedForHolds() {
        let time = CheckpointPolicy(.time(ms(20)))
        #expect(!due(time, at: 1_000_000, Nanoseconds(19_999_999)))
        #expect(due(time, at: 1, ms(20)))
        let exits = CheckpointPolicy(.exits(10))
        #expect(!due(exits, at: 9, .seconds(100)))
        #expect(due(exits, at: 10, Nanoseconds(1)))
        let never = CheckpointPolicy(.never)
        #expect(!due(never, at: .max, .seconds(10_000)))
    }

    /// A guest that makes an exit every 100 µs, with checkpoints of `pause`, for `span`.
    private func run(_ policy: inout CheckpointPolicy, from start: Nanoseconds = Nanoseconds(0), for span: Nanoseconds,
                     pause: Nanoseconds) -> (taken: Int, share: Double, end: Nanoseconds) {
        var now = start
        var (taken, paused) = (0, Nanoseconds(0))
        while now < start + span {
            now = now + .microseconds(100)
            let exit = ExitNumber(now.rawValue / 100_000)
            guard policy.isDue(at: exit, now: now) else { continue }
            taken += 1
            paused = paused + pause
            now = now + pause
            policy.took(pause, at: exit, now: now)
        }
        return (taken, paused.seconds / (now - start).seconds, now)
    }

    @Test(arguments: [CheckpointPolicy.Spacing.automatic, .time(.milliseconds(20)), .exits(200)])
    func dearCheckpointsAreSpreadOut(_ spacing: CheckpointPolicy.Spacing) throws {
        var policy = CheckpointPolicy(spacing)
        let dear = run(&policy, for: .seconds(60), pause: ms(30))
        // The first comes before its price is known.
        #expect(dear.share < 0.0515 && dear.share > 0.04, "\(dear)")
        let widest = try #require(policy.spreadTo)
        #expect(widest > ms(500) && widest <= ms(600), "\(widest)")
        // Once they are cheap again they are as close as was asked for.
        let settled = run(&policy, from: dear.end, for: .seconds(5), pause: .microseconds(100))
        let cheap = run(&policy, from: settled.end, for: .seconds(10), pause: .microseconds(100))
        #expect(cheap.taken >= (spacing == .automatic ? 39 : 480), "\(cheap)")
        #expect(policy.spreadTo == widest)
    }

    @Test func cheapCheckpointsAreNotSpreadOut() {
        var policy = CheckpointPolicy(.time(ms(20)))
        let (taken, share, _) = run(&policy, for: .seconds(10), pause: .microseconds(900))
        #expect(policy.spreadTo == nil && taken > 470 && share < 0.05)
    }

    @Test func spacingsAreRead() {
        #expect(CheckpointPolicy.Spacing(parsing: "250ms") == .time(ms(250)))
        #expect(CheckpointPolicy.Spacing(parsing: "2s") == .time(ms(2000)))
        #expect(CheckpointPolicy.Spacing(parsing: "10000exits") == .exits(10_000))
        #expect(CheckpointPolicy.Spacing(parsing: "1exit") == .exits(1))
        #expect(CheckpointPolicy.Spacing(parsing: "none") == .never)
        for wrong in ["", "0ms", "0exits", "-1exits", "exits", "ms", "always", "1.5exits", "99999999999999999999exits"] {
            #expect(CheckpointPolicy.Spacing(parsing: wrong) == nil, "\(wrong)")
        }
    }
}
