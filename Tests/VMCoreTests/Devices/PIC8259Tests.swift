import Testing
import VMCore

@Suite struct PIC8259Tests {
    private let now = Nanoseconds(0)

    /// A pair set up as a PC does: vectors 0x20 and 0x28, all inputs unmasked.
    private func pair(masterICW4: UInt8 = 1, slaveICW4: UInt8 = 1) -> PIC8259Pair {
        var pic = PIC8259Pair()
        for (command, base, wiring, icw4) in [
            (0x20, 0x20, 0x04, masterICW4), (0xa0, 0x28, 0x02, slaveICW4),
        ] as [(UInt16, UInt8, UInt8, UInt8)] {
            out(&pic, command, 0x11)
            out(&pic, command + 1, base)
            out(&pic, command + 1, wiring)
            out(&pic, command + 1, icw4)
        }
        return pic
    }

    private func out(_ pic: inout PIC8259Pair, _ port: UInt16, _ value: UInt8) {
        pic.write(offset: port, size: 1, value: UInt32(value), at: now)
    }

    private func `in`(_ pic: inout PIC8259Pair, _ port: UInt16) -> UInt8 {
        UInt8(pic.read(offset: port, size: 1, at: now))
    }

    private func raise(_ pic: inout PIC8259Pair, _ irqs: Int...) {
        for irq in irqs {
            pic.setLine(irq, level: false)
            pic.setLine(irq, level: true)
        }
    }

    @Test func everythingIsMaskedAtPowerUp() {
        var pic = PIC8259Pair()
        for irq in 0..<16 { raise(&pic, irq) }
        #expect(!pic.output)
        #expect(`in`(&pic, 0x21) == 0xff && `in`(&pic, 0xa1) == 0xff)
    }

    @Test func vectorsComeFromICW2() {
        for irq in 0..<16 where irq != 2 {
            var pic = pair()
            raise(&pic, irq)
            #expect(pic.output)
            #expect(pic.acknowledge() == UInt8(0x20 + irq))
        }
    }

    @Test func icw2KeepsTheUpperFiveBits() {
        var pic = PIC8259Pair()
        out(&pic, 0x20, 0x13)
        out(&pic, 0x21, 0x77)
        out(&pic, 0x21, 0x01)
        raise(&pic, 3)
        #expect(pic.acknowledge() == 0x73)
    }

    @Test func singleModeWithoutICW4TakesTwoWords() {
        var pic = PIC8259Pair()
        out(&pic, 0x20, 0x12)
        out(&pic, 0x21, 0x40)
        out(&pic, 0x21, 0xa5)
        #expect(`in`(&pic, 0x21) == 0xa5)
    }

    @Test func icw1ClearsMaskServiceAndEdges() {
        var pic = pair()
        out(&pic, 0x21, 0x55)
        raise(&pic, 1, 3)
        _ = pic.acknowledge()
        raise(&pic, 5)
        out(&pic, 0x20, 0x13)
        #expect(pic.master.inService == 0 && pic.master.mask == 0 && pic.master.requests == 0)
        out(&pic, 0x21, 0x20)
        out(&pic, 0x21, 0x01)
        #expect(!pic.output, "a line that stayed high must rise again")
        raise(&pic, 5)
        #expect(pic.acknowledge() == 0x25)
    }

    @Test func lowerNumbersNestIntoHigherOnes() {
        var pic = pair()
        raise(&pic, 5)
        #expect(pic.acknowledge() == 0x25)
        raise(&pic, 6)
        #expect(!pic.output)
        raise(&pic, 1)
        #expect(pic.acknowledge() == 0x21)
        out(&pic, 0x20, 0x20)
        #expect(!pic.output, "IRQ 5 still blocks IRQ 6")
        out(&pic, 0x20, 0x20)
        #expect(pic.acknowledge() == 0x26)
    }

    @Test func ocw3ChoosesIRROrISR() {
        var pic = pair()
        raise(&pic, 4, 6)
        _ = pic.acknowledge()
        #expect(`in`(&pic, 0x20) == 0x40)
        out(&pic, 0x20, 0x0b)
        #expect(`in`(&pic, 0x20) == 0x10)
        out(&pic, 0x20, 0x0a)
        #expect(`in`(&pic, 0x20) == 0x40)
    }

    @Test func specificEOIEndsThatLevelOnly() {
        var pic = pair()
        raise(&pic, 5)
        _ = pic.acknowledge()
        raise(&pic, 1)
        _ = pic.acknowledge()
        out(&pic, 0x20, 0x65)
        #expect(pic.master.inService == 0b10)
    }

    @Test func maskedRequestsWait() {
        var pic = pair()
        out(&pic, 0x21, 0x08)
        raise(&pic, 3)
        #expect(!pic.output)
        out(&pic, 0x21, 0x00)
        #expect(pic.acknowledge() == 0x23)
    }

    @Test func anEdgeCountsOnce() {
        var pic = pair()
        pic.setLine(3, level: true)
        #expect(pic.acknowledge() == 0x23)
        out(&pic, 0x20, 0x20)
        pic.setLine(3, level: true)
        #expect(!pic.output)
    }

    @Test func aLevelCountsUntilItFalls() {
        var pic = pair()
        out(&pic, 0x4d0, 0x20)
        pic.setLine(5, level: true)
        for _ in 0..<3 {
            #expect(pic.acknowledge() == 0x25)
            #expect(!pic.output)
            out(&pic, 0x20, 0x20)
            #expect(pic.output)
        }
        pic.setLine(5, level: false)
        #expect(!pic.output)
    }

    @Test func elcrReadsBackWithoutFixedEdges() {
        var pic = PIC8259Pair()
        pic.write(offset: 0x4d0, size: 2, value: 0xffff, at: now)
        #expect(pic.read(offset: 0x4d0, size: 2, at: now) == 0xdef8)
    }

    @Test func aVanishedRequestIsSpuriousIRQ7WithoutService() {
        var pic = pair()
        pic.setLine(3, level: true)
        pic.setLine(3, level: false)
        #expect(!pic.output)
        #expect(pic.acknowledge() == 0x27)
        #expect(pic.master.inService == 0)
    }

    @Test func aRequestThatVanishesInTheSlaveIsSpuriousIRQ15() {
        var pic = pair()
        raise(&pic, 10)
        // Between the two INTA pulses, past the pair's own wiring.
        pic.slave.setInput(2, level: false)
        #expect(pic.acknowledge() == 0x2f)
        #expect(pic.slave.inService == 0)
        #expect(pic.master.inService == 0b100, "the master wants its EOI")
    }

    @Test func theSlaveInterruptsThroughIRQ2() {
        var pic = pair()
        raise(&pic, 12)
        #expect(pic.acknowledge() == 0x2c)
        #expect(pic.master.inService == 0x04 && pic.slave.inService == 0x10)
        raise(&pic, 14)
        out(&pic, 0x20, 0x20)
        #expect(!pic.output, "IRQ 12 still blocks IRQ 14 in the slave")
        out(&pic, 0xa0, 0x20)
        #expect(pic.acknowledge() == 0x2e)
    }

    @Test func slavesRequestOutranksIRQ3() {
        var pic = pair()
        raise(&pic, 3, 8)
        #expect(pic.acknowledge() == 0x28)
        #expect(!pic.output)
        out(&pic, 0xa0, 0x20)
        out(&pic, 0x20, 0x20)
        #expect(pic.acknowledge() == 0x23)
    }

    @Test func twoSlaveRequestsAreBothDelivered() {
        var pic = pair()
        raise(&pic, 9, 11)
        #expect(pic.acknowledge() == 0x29)
        out(&pic, 0xa0, 0x20)
        out(&pic, 0x20, 0x20)
        #expect(pic.acknowledge() == 0x2b)
    }

    @Test func irq2CannotBeSet() {
        var pic = pair()
        raise(&pic, 2, -1, 16, 255)
        #expect(!pic.output)
    }

    @Test func fullyNestedModeBlocksAHigherSlaveRequest() {
        var pic = pair()
        raise(&pic, 12)
        _ = pic.acknowledge()
        raise(&pic, 9)
        #expect(!pic.output)
    }

    @Test func specialFullyNestedModeLetsAHigherSlaveRequestIn() {
        var pic = pair(masterICW4: 0x11)
        raise(&pic, 12)
        _ = pic.acknowledge()
        raise(&pic, 9)
        #expect(pic.acknowledge() == 0x29)
        raise(&pic, 4)
        #expect(!pic.output, "IRQ 2 in service still blocks lower inputs")
    }

    @Test func specialMaskModeLetsLowerLevelsIn() {
        var pic = pair()
        raise(&pic, 1)
        _ = pic.acknowledge()
        out(&pic, 0x21, 0x02)
        raise(&pic, 6)
        #expect(!pic.output)
        out(&pic, 0x20, 0x68)
        #expect(pic.acknowledge() == 0x26)
        out(&pic, 0x20, 0x20)
        #expect(pic.master.inService == 0x02, "a non-specific EOI skips the masked level")
        out(&pic, 0x20, 0x48)
        raise(&pic, 5)
        #expect(!pic.output)
    }

    @Test func ocw3WithoutESMMKeepsSpecialMaskMode() {
        var pic = pair()
        out(&pic, 0x20, 0x68)
        out(&pic, 0x20, 0x0a)
        raise(&pic, 3)
        #expect(pic.acknowledge() == 0x23)
        out(&pic, 0x21, 0x08)
        raise(&pic, 5)
        #expect(pic.output, "the mask lets lower priorities through while IRQ 3 is in service")
    }

    @Test func automaticEOILeavesNothingInService() {
        var pic = pair(masterICW4: 0x03)
        raise(&pic, 3, 4)
        #expect(pic.acknowledge() == 0x23)
        #expect(pic.master.inService == 0)
        #expect(pic.acknowledge() == 0x24)
    }

    @Test func automaticEOIInTheSlaveStillMakesEdges() {
        var pic = pair(masterICW4: 0x03, slaveICW4: 0x03)
        raise(&pic, 9, 10, 11)
        #expect([pic.acknowledge(), pic.acknowledge(), pic.acknowledge()] == [0x29, 0x2a, 0x2b])
        #expect(!pic.output)
    }

    @Test func automaticEOICanRotate() {
        var pic = pair(masterICW4: 0x03)
        out(&pic, 0x20, 0x80)
        raise(&pic, 0, 1)
        #expect(pic.acknowledge() == 0x20)
        raise(&pic, 0)
        #expect(pic.acknowledge() == 0x21, "IRQ 0 has the lowest priority now")
        out(&pic, 0x20, 0x00)
        #expect(pic.acknowledge() == 0x20)
        raise(&pic, 0, 1)
        #expect(pic.acknowledge() == 0x20, "rotation is off again: IRQ 1 stays lowest")
    }

    @Test func rotateOnNonSpecificEOIMakesThatLevelLowest() {
        var pic = pair()
        raise(&pic, 4)
        _ = pic.acknowledge()
        out(&pic, 0x20, 0xa0)
        raise(&pic, 3, 4, 5)
        #expect(pic.acknowledge() == 0x25)
    }

    @Test func rotateOnSpecificEOIMakesThatLevelLowest() {
        var pic = pair()
        raise(&pic, 4)
        _ = pic.acknowledge()
        out(&pic, 0x20, 0xe4)
        #expect(pic.master.inService == 0)
        raise(&pic, 0, 5)
        #expect(pic.acknowledge() == 0x25)
    }

    @Test func setPriorityEndsNothing() {
        var pic = pair()
        raise(&pic, 4)
        _ = pic.acknowledge()
        out(&pic, 0x20, 0xc5)
        #expect(pic.master.inService == 0x10)
        raise(&pic, 5, 6)
        #expect(pic.acknowledge() == 0x26, "order is 6 7 0 1 2 3 4 5")
    }

    @Test func ocw2NoOperationDoesNothing() {
        var pic = pair()
        raise(&pic, 4)
        _ = pic.acknowledge()
        let before = pic
        out(&pic, 0x20, 0x44)
        #expect(pic == before)
    }

    @Test func pollAcknowledgesLikeINTA() {
        var pic = pair()
        raise(&pic, 3)
        out(&pic, 0x20, 0x0c)
        #expect(`in`(&pic, 0x20) == 0x83)
        #expect(pic.master.inService == 0x08 && !pic.output)
        out(&pic, 0x20, 0x0c)
        #expect(`in`(&pic, 0x21) == 0x00, "nothing asks")
        #expect(`in`(&pic, 0x21) == 0x00, "back to the mask")
    }

    @Test func pollingTheSlaveLowersTheCascade() {
        var pic = pair()
        raise(&pic, 12)
        out(&pic, 0xa0, 0x0c)
        #expect(`in`(&pic, 0xa0) == 0x84)
        #expect(!pic.output)
    }

    @Test func wideAccessesAreBytes() {
        var pic = pair()
        raise(&pic, 3)
        #expect(pic.acknowledge() == 0x23)
        pic.write(offset: 0x20, size: 2, value: 0xa50b, at: now)
        #expect(pic.master.mask == 0xa5)
        #expect(pic.read(offset: 0x20, size: 4, at: now) == 0xffff_a508, "0x0b selects the in-service register")
    }

    @Test func thePairOwnsSixPorts() {
        let owned = (0...UInt16.max).filter { PIC8259Pair.owns(port: $0) }
        #expect(owned == [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1])
    }
}
