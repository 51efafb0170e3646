import Testing
import VMCore

@Suite struct LocalAPICTimerTests {
    typealias Register = LocalAPIC.Register
    private static let divideBy1: UInt32 = 0b1011

    /// An enabled APIC whose timer has vector 0x40 and divides by 1.
    private func apic(periodic: Bool) -> LocalAPIC {
        var apic = LocalAPIC.enabled()
        apic.set(Register.divideConfiguration, Self.divideBy1)
        apic.set(Register.lvtTimer, (periodic ? 0x20000 : 0) | 0x40)
        return apic
    }

    /// Whether the timer has fired since the last call.
    private func fired(_ apic: inout LocalAPIC) -> Bool {
        defer { apic.requests = VectorSet() }
        return apic.requests[0x40]
    }

    @Test(arguments: [
        (0b0000, 2), (0b0001, 4), (0b0010, 8), (0b0011, 16), (0b1000, 32), (0b1001, 64), (0b1010, 128), (0b1011, 1),
    ] as [(UInt32, UInt64)])
    func everyDivisorCountsAtItsRate(configuration: UInt32, divisor: UInt64) {
        var apic = apic(periodic: false)
        apic.set(Register.divideConfiguration, configuration)
        apic.set(Register.initialCount, 100)
        #expect(apic.timer.divisor == divisor)
        #expect(apic.get(Register.currentCount, at: 10 * divisor) == 90)
        #expect(apic.get(Register.currentCount, at: 11 * divisor - 1) == 90)
        #expect(apic.nextDeadline(after: Nanoseconds(0)) == Nanoseconds(100 * divisor))
        apic.advance(to: Nanoseconds(100 * divisor - 1))
        #expect(!fired(&apic))
        apic.advance(to: Nanoseconds(100 * divisor))
        #expect(fired(&apic))
    }

    @Test func aOneShotFiresOnceAndStaysAtZero() {
        var apic = apic(periodic: false)
        apic.set(Register.initialCount, 1_000, at: 50)
        apic.advance(to: Nanoseconds(1_050))
        #expect(fired(&apic))
        #expect(apic.get(Register.currentCount, at: 5_000) == 0)
        #expect(apic.get(Register.initialCount, at: 5_000) == 1_000)
        #expect(apic.nextDeadline(after: Nanoseconds(5_000)) == nil)
        #expect(!fired(&apic))
    }

    @Test func aPeriodicTimerReloads() {
        var apic = apic(periodic: true)
        apic.set(Register.initialCount, 1_000)
        for period in 1...5 as ClosedRange<UInt64> {
            #expect(apic.nextDeadline(after: Nanoseconds(period * 1_000 - 1)) == Nanoseconds(period * 1_000))
            apic.advance(to: Nanoseconds(period * 1_000))
            #expect(fired(&apic))
        }
        #expect(apic.get(Register.currentCount, at: 5_250) == 750)
    }

    @Test func aLateAdvanceIsOneInterruptInPhase() {
        var apic = apic(periodic: true)
        apic.set(Register.initialCount, 1_000)
        apic.advance(to: Nanoseconds(7_300))
        #expect(fired(&apic))
        #expect(apic.nextDeadline(after: Nanoseconds(7_300)) == Nanoseconds(8_000))
        #expect(apic.get(Register.currentCount, at: 7_300) == 700)
        #expect(!fired(&apic))
    }

    @Test func writingZeroStops() {
        var apic = apic(periodic: true)
        apic.set(Register.initialCount, 1_000)
        apic.set(Register.initialCount, 0, at: 500)
        #expect(apic.nextDeadline(after: Nanoseconds(500)) == nil)
        apic.advance(to: Nanoseconds(5_000))
        #expect(!fired(&apic) && apic.get(Register.currentCount, at: 5_000) == 0)
    }

    @Test func writingTheInitialCountRestarts() {
        var apic = apic(periodic: false)
        apic.set(Register.initialCount, 1_000)
        apic.set(Register.initialCount, 2_000, at: 900)
        apic.advance(to: Nanoseconds(2_899))
        #expect(!fired(&apic))
        apic.advance(to: Nanoseconds(2_900))
        #expect(fired(&apic))
    }

    @Test func aMaskedTimerCountsSilently() {
        var apic = apic(periodic: true)
        apic.set(Register.lvtTimer, 0x30040)
        apic.set(Register.initialCount, 1_000)
        #expect(apic.nextDeadline(after: Nanoseconds(0)) == nil)
        #expect(apic.get(Register.currentCount, at: 2_400) == 600)
        #expect(!fired(&apic))
        apic.set(Register.lvtTimer, 0x20040, at: 2_500)
        #expect(!fired(&apic), "what was missed stays missed")
        #expect(apic.nextDeadline(after: Nanoseconds(2_500)) == Nanoseconds(3_000))
    }

    @Test func changingTheDivisorKeepsTheCount() {
        var apic = apic(periodic: false)
        apic.set(Register.initialCount, 1_000)
        apic.set(Register.divideConfiguration, 0b0000, at: 400)
        #expect(apic.get(Register.currentCount, at: 400) == 600)
        #expect(apic.nextDeadline(after: Nanoseconds(400)) == Nanoseconds(1_600))
    }

    @Test func aReadAfterExpirySeesTheInterruptRequested() {
        var apic = apic(periodic: false)
        apic.set(Register.initialCount, 1_000)
        #expect(apic.get(Register.interruptRequest + 0x20, at: 1_000) == 1)
    }

    @Test func theTSCDeadlineModeIsNotOffered() {
        var apic = apic(periodic: false)
        apic.set(Register.lvtTimer, 0x40040)
        #expect(apic.get(Register.lvtTimer) == 0x40)
    }

    @Test func theLongestTimerFits() {
        var apic = apic(periodic: false)
        apic.set(Register.divideConfiguration, 0b1010)
        apic.set(Register.initialCount, .max)
        #expect(apic.nextDeadline(after: Nanoseconds(0)) == Nanoseconds(0xffff_ffff * 128))
    }

    @Test func anOverdueTimerIsDueAtOnce() {
        var apic = apic(periodic: false)
        apic.set(Register.initialCount, 10)
        #expect(apic.nextDeadline(after: Nanoseconds(500)) == Nanoseconds(501))
    }
}
